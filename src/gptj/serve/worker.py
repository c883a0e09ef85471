"""The engine's one thread: requests come in by post, and what is drawn goes out to the event loop.

Nothing else touches the engine. Between two steps the thread opens its post, so a request joins,
and one that is cancelled leaves, within one step.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import jax

from gptj.engine.engine import Engine
from gptj.serve.asked import Asked
from gptj.serve.facts import Facts, Voice, facts, voice
from gptj.serve.metrics import Metrics
from gptj.serve.refusal import Refused

T = TypeVar("T")

News = tuple[Callable[..., None], *tuple[Any, ...]]
"""A function that the event loop is to call, and with what."""


@dataclasses.dataclass(eq=False)
class _UnderWay:
    """One request in the engine."""

    asked: Asked
    index: int
    left: int
    """Completions still to come."""
    has_started: bool = False


class Worker:
    """Runs an engine in a thread of its own."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        """A worker that is to be started.

        Raises:
          UserError: the model has no tokenizer.
        """
        self.engine, self.is_ready = engine, False
        self.facts: Facts = facts(engine)
        self.failure: BaseException | None = None
        """What ended the thread although nobody asked it to."""
        self.warm_compilations = 0
        """Programs that were compiled before the first request."""
        self._metrics, self._mesh = metrics, jax.sharding.get_mesh()
        self._post: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._under_way: dict[int, _UnderWay] = {}
        self._numbers: dict[Asked, list[int]] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Warm the engine up and go to work; `on_change` is called on the loop when ready or ended.

        To be called on the event loop that all requests will come from.
        """
        self._loop, self._on_change = asyncio.get_running_loop(), on_change
        self._thread.start()

    @property
    def running(self) -> int:
        """Requests that draw now."""
        return sum(each.has_started for each in list(self._under_way.values()))

    @property
    def busy(self) -> bool:
        """Whether a request is not answered yet."""
        return not self.failure and (bool(self._under_way) or not self._post.empty())

    @property
    def recompilations(self) -> int:
        """Programs that had to be compiled while requests waited: there should be none."""
        return self.engine.compilations() - self.warm_compilations if self.is_ready else 0

    @property
    def prefix_hits(self) -> int:
        """Chunks of prompts that did not have to be read."""
        return self.engine.prefix.hits

    @property
    def prefix_misses(self) -> int:
        """Chunks that had to be."""
        return self.engine.prefix.misses

    def hand_in(self, asked: Asked) -> None:
        """Give requests to the engine before its next step."""
        self._post.put(lambda: self._hand_in(asked))
        if self.failure:  # nobody may open the post any more
            asked.refuse(_stopped())

    async def load_adapter(self, name: str, place: str) -> Voice:
        """Read an adapter in another thread, and have the engine load it between two steps."""
        found = await anyio.to_thread.run_sync(self.engine.adapters.read, place)
        engine = self.engine.adapters
        return await self._have(lambda: voice(engine.load(name, found), self.facts.fingerprint))

    async def unload_adapter(self, name: str) -> None:
        """Have the engine unload it between two steps."""
        await self._have(lambda: self.engine.unload_adapter(name))

    async def _have(self, work: Callable[[], T]) -> T:
        """What the engine's thread makes of it."""
        done: asyncio.Future[T] = self._loop.create_future()

        def run() -> None:
            try:
                self._tell([(_settle, done.set_result, done, work())])
            except Exception as error:
                self._tell([(_settle, done.set_exception, done, error)])

        self._post.put(run)
        if self.failure:  # nobody may open the post any more
            raise _stopped()
        return await done

    def forget(self, asked: Asked) -> None:
        """Take out what is left of them; nobody waits for it. What is over stays so."""
        self._post.put(lambda: self._forget(asked))

    def cut(self, asked: Asked | None = None) -> None:
        """End them, or everyone's, where they stand: they are told, with what was drawn so far."""
        self._post.put(lambda: self._cut(asked))

    def stop(self, timeout: float) -> bool:
        """Have the thread end after its step. Returns whether it did within `timeout` seconds."""
        self._stopping = True
        self._post.put(lambda: None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with contextlib.nullcontext() if self._mesh.empty else jax.set_mesh(self._mesh):
                self.engine.warm_up()
                self.warm_compilations, self.is_ready = self.engine.compilations(), True
                self._tell([(self._on_change,)])
                while not self._stopping:
                    self._work()
        except BaseException as error:  # whatever it is, those who wait must hear of it
            self.failure, self.is_ready = error, False
            with contextlib.suppress(queue.Empty):
                while True:  # who is in the post must hear of it as well
                    self._post.get_nowait()()
            self._tell([(asked.refuse, _stopped()) for asked in self._numbers])
            self._tell([(self._on_change,)])

    def _work(self) -> None:
        """Open the post, waiting for some if there is nothing to do, and make a step."""
        if not self.engine.busy:
            self._post.get()()
        with contextlib.suppress(queue.Empty):
            while True:
                self._post.get_nowait()()
        if self.engine.busy:
            self._step()

    def _step(self) -> None:
        deltas, news = self.engine.step(), list[News]()
        now = time.perf_counter()
        for job in self.engine.drawing:
            if each := self._under_way.get(job.request):
                self._starts(each, news)
        for delta in deltas:
            if each := self._under_way.get(delta.request):
                self._starts(each, news)
                self._metrics.came(each.asked, each.index, delta, now)
                news.append((each.asked.push, each.index, delta))
                each.left -= delta.completion is not None
                if not each.left:
                    self._leaves(delta.request)
        self._tell(news)

    def _starts(self, each: _UnderWay, news: list[News]) -> None:
        if not each.has_started:
            each.has_started = True
            news.append((each.asked.start, each.index))

    def _hand_in(self, asked: Asked) -> None:
        self._numbers[asked] = numbers = []
        try:
            for index, request in enumerate(asked.requests):
                numbers.append(self.engine.submit(request))
                self._under_way[numbers[-1]] = _UnderWay(asked, index, request.sampling.n)
        except BaseException as error:  # a panic in a library is no Exception
            self._forget(asked)
            self._tell([(asked.refuse, error)])
        else:
            self._metrics.prompt_tokens.inc(sum(len(each.prompt) for each in asked.requests))
            self._tell([(asked.accept,)])

    def _leaves(self, number: int) -> None:
        asked = self._under_way.pop(number).asked
        self._numbers[asked].remove(number)
        if not self._numbers[asked]:
            del self._numbers[asked]

    def _forget(self, asked: Asked) -> None:
        for number in self._numbers.pop(asked, ()):
            self._under_way.pop(number, None)
            self.engine.cancel(number)

    def _cut(self, asked: Asked | None) -> None:
        for number in list(self._under_way) if asked is None else self._numbers.get(asked, ()):
            self.engine.cancel(number)

    def _tell(self, news: list[News]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it all who waited
            if news:
                self._loop.call_soon_threadsafe(_call, news)


def _stopped() -> Refused:
    return Refused(500, "the engine has stopped: see the server's log")


def _settle(settle: Callable[[Any], None], done: asyncio.Future[Any], what: object) -> None:
    if not done.done():  # nobody may wait for it any more
        settle(what)


def _call(news: list[News]) -> None:
    for function, *given in news:
        function(*given)
