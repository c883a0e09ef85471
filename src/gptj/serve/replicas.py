"""Several engines on a Ray cluster, asked as if they were one.

Each replica is an engine with its thread, in a process that Ray Serve places, watches and replaces.
The server itself stays one process: it reads prompts, keeps the queue and the keys, and hands what
it lets in to a replica. A replica that is lost in the middle loses nothing: the request is asked of
another one, and since equal engines give equal bits, what was handed out already is the beginning
of what comes now.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import traceback
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError

from gptj.cluster import AUTO, connect
from gptj.engine.engine import Engine
from gptj.engine.request import Request
from gptj.errors import UserError
from gptj.serve.asked import Asked
from gptj.serve.config import RayConfig
from gptj.serve.course import Course, lost
from gptj.serve.facts import Facts, Voice
from gptj.serve.logs import say
from gptj.serve.metrics import Metrics
from gptj.serve.refusal import Refused
from gptj.serve.worker import Worker

APP = "gptj"
"""What the replicas are called in the cluster."""

ATTEMPTS = 5
"""Replicas that a request is asked of, one after the other, as they are lost."""

AT_ONCE = 10_000
"""Requests that Ray may hand to one replica: the queue's length is the server's own affair."""

Build = Callable[[], contextlib.AbstractContextManager[Engine]]

Piece = tuple[str, Any]
"""What a replica sends: `here` with who it is, `accepted`, `starts` with the index of a request,
`delta` with the index and what was drawn, `refused` with a sentence, `counts` at the end."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """How a replica has been doing."""

    recompilations: int
    hits: int
    misses: int


class Replica:
    """One engine, in a process of Ray's."""

    def __init__(self, build: Build) -> None:
        """Build the engine and warm it up: until then Ray sends nothing here."""
        with build() as engine:
            self._worker = Worker(engine, Metrics())
            engine.warm_up()
        self._is_started, self._name = False, uuid.uuid4().hex

    def facts(self) -> Facts:
        """What those who ask need to know."""
        return self._worker.facts

    def check_health(self) -> None:
        """Raise if the engine has stopped: Ray then replaces the replica."""
        if self._worker.failure:
            raise self._worker.failure

    async def run(self, requests: list[Request]) -> AsyncIterator[Piece]:
        """Answer requests, piece by piece."""
        await self._ready()
        yield "here", (self._name, self._worker.facts.fingerprint)
        started: list[int] = []
        asked = Asked(requests, started.append)
        self._worker.hand_in(asked)
        try:
            await asked.accepted
            yield "accepted", None
            async for index, delta in asked.deltas():
                for first in started:
                    yield "starts", first
                started.clear()
                yield "delta", (index, delta)
            worker = self._worker
            found = Counts(worker.recompilations, worker.prefix_hits, worker.prefix_misses)
            yield "counts", found
        except UserError as error:
            yield "refused", str(error)
        except Refused:
            # The engine has stopped. Until Ray asks for its health it would be the replica with the
            # shortest queue, and lose all that comes: who is dead is asked nothing, and replaced.
            traceback.print_exception(self._worker.failure)
            os._exit(1)
        finally:
            self._worker.forget(asked)

    async def _ready(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._worker.start()
        while not (self._worker.is_ready or self._worker.failure):
            await asyncio.sleep(0.01)


class Replicas:
    """Engines on a cluster; see `gptj.serve.asked.Answering`."""

    def __init__(self, build: Build, config: RayConfig, metrics: Metrics) -> None:
        """Start the replicas, and wait until all of them are warm.

        Args:
          build: makes a replica's engine, in its process, with its mesh set meanwhile.

        Raises:
          UserError: the cluster cannot be reached, has no room, or a replica cannot be built.
        """
        self.failure: BaseException | None = None
        self.is_ready, self.warm_compilations = False, 0
        self._metrics, self._handle = metrics, _deploy(build, config)
        self.facts: Facts = self._handle.facts.remote().result()
        room = dataclasses.replace(
            self.facts.options, slots=self.facts.options.slots * config.replicas
        )
        self.facts = dataclasses.replace(self.facts, options=room)
        self._courses: dict[Asked, tuple[Course, asyncio.Task[None]]] = {}
        self._counts: dict[tuple[str, str], Counts] = {}

    @property
    def running(self) -> int:
        """Requests that draw now."""
        return sum(len(course.running) for course, _ in self._courses.values())

    @property
    def busy(self) -> bool:
        """Whether a request is not answered yet."""
        return bool(self._courses)

    @property
    def recompilations(self) -> int:
        """Programs that had to be compiled while requests waited."""
        return sum(each.recompilations for each in self._counts.values())

    @property
    def prefix_hits(self) -> int:
        """Chunks of prompts that did not have to be read."""
        return sum(each.hits for each in self._counts.values())

    @property
    def prefix_misses(self) -> int:
        """Chunks that had to be."""
        return sum(each.misses for each in self._counts.values())

    def start(self, on_change: Callable[[], None] = lambda: None) -> None:
        """They are ready already."""
        self.is_ready = True
        asyncio.get_running_loop().call_soon(on_change)

    def hand_in(self, asked: Asked) -> None:
        """Ask a replica, and another one if it is lost."""
        course = Course(asked, self._metrics)
        task = asyncio.create_task(self._run(course))
        self._courses[asked] = course, task
        task.add_done_callback(lambda _: self._courses.pop(asked, None))

    async def load_adapter(self, name: str, place: str) -> Voice:
        """Replicas have those that they begin with: one that is replaced would lack the others."""
        raise Refused(400, "replicas load no adapters while they run: name them with --adapters")

    async def unload_adapter(self, name: str) -> None:
        """Nor do they unload them."""
        raise Refused(400, "replicas unload no adapters while they run")

    def forget(self, asked: Asked) -> None:
        """Nobody waits for them."""
        if asked in self._courses:
            self._courses[asked][1].cancel()

    def cut(self, asked: Asked | None = None) -> None:
        """End them, or everyone's, where they stand."""
        for each in [asked] if asked else list(self._courses):
            if each in self._courses:
                course, task = self._courses[each]
                task.cancel()
                course.cut()

    def stop(self, timeout: float) -> bool:
        """Take the replicas out of the cluster."""
        with contextlib.suppress(RayError, TimeoutError):
            serve.delete(APP)
        ray.shutdown()
        return True

    async def _run(self, course: Course) -> None:
        try:
            for attempt in range(ATTEMPTS):
                try:
                    return await self._ask(course)
                except RayActorError as error:
                    say("a replica was lost", attempt=attempt + 1, error=type(error).__name__)
            raise lost(f"{ATTEMPTS} times in a row")
        except Exception as error:  # whatever it is, who waits must hear of it
            course.asked.refuse(error)

    async def _ask(self, course: Course) -> None:
        pieces = self._handle.options(stream=True).run.remote(course.asked.requests)
        try:
            async for kind, what in pieces:
                if kind == "refused":
                    raise UserError(what)
                if kind == "here":
                    who = what
                    course.begin(who[1])
                elif kind == "counts":
                    self._counts[who] = what
                else:
                    course.take(kind, what)
        except asyncio.CancelledError:
            pieces.cancel()
            raise


def _deploy(build: Build, config: RayConfig) -> Any:
    """Start the replicas; a handle to ask them with."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # the server's log is lines of JSON
    connect(config.address or AUTO)
    deployed = serve.deployment(
        name="engine",
        num_replicas=config.replicas,
        max_ongoing_requests=AT_ONCE,
        ray_actor_options={"num_cpus": config.cpus, "num_gpus": config.gpus},
        health_check_period_s=2,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=2,
    )(Replica)
    serve.start(proxy_location="Disabled")
    try:
        return serve.run(deployed.bind(build), name=APP, route_prefix=None)
    except RuntimeError as error:
        raise UserError(f"the replicas did not start: {error}") from error
