"""What clients ask of whatever draws for them: one engine here, or several elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from gptj.engine.request import Completion, Delta, Request
from gptj.serve.facts import Facts, Voice


class Asked:
    """Requests that one client asks together, until all their completions came.

    Made and read on the event loop; the thread only passes it on.
    """

    def __init__(self, requests: list[Request], on_start: Callable[[int], None]) -> None:
        """Requests, and what to call with the index of each when it draws first."""
        self.requests, self._on_start = requests, on_start
        self.arrived = time.perf_counter()
        self.waited: float | None = None
        """Seconds until the first of them drew."""
        self.accepted = asyncio.get_running_loop().create_future()
        """Done once the engine has taken them; it raises what the engine refused them for."""
        self.used = 0
        """Tokens read and drawn for it so far."""
        self.last: dict[tuple[int, int], float] = {}
        """By request and completion, when its last token came: for the metrics."""
        self._news: asyncio.Queue[tuple[int, Delta] | Exception] = asyncio.Queue()

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """What is drawn, as it comes, each with the index of its request; to the last completion.

        Raises:
          Refused: the engine stopped.
        """
        left = sum(request.sampling.n for request in self.requests)
        while left:
            news = await self._news.get()
            if isinstance(news, Exception):
                raise news
            left -= news[1].completion is not None
            yield news

    async def completions(self) -> list[list[Completion]]:
        """All the completions of each request."""
        found: list[dict[int, Completion]] = [{} for _ in self.requests]
        async for index, delta in self.deltas():
            if delta.completion:
                found[index][delta.choice] = delta.completion
        return [[choices[n] for n in sorted(choices)] for choices in found]

    def accept(self) -> None:
        """The engine has taken the requests."""
        self.used = sum(len(request.prompt) for request in self.requests)
        if not self.accepted.done():
            self.accepted.set_result(None)

    def start(self, index: int) -> None:
        """One of them has a slot, and draws."""
        if self.waited is None:
            self.waited = time.perf_counter() - self.arrived
        self._on_start(index)

    def refuse(self, error: BaseException) -> None:
        """The engine will not take them, or has stopped."""
        if not self.accepted.done():
            self.accepted.set_exception(error)
            self.accepted.exception()  # nobody may wait for it any more
        else:
            self._news.put_nowait(error if isinstance(error, Exception) else RuntimeError(error))

    def push(self, index: int, delta: Delta) -> None:
        """The next piece of a completion."""
        self.used += len(delta.tokens)
        self._news.put_nowait((index, delta))


class Answering(Protocol):
    """What draws. For the event loop alone, which `start` is called on."""

    facts: Facts
    is_ready: bool
    failure: BaseException | None
    """What ended it although nobody asked it to."""
    warm_compilations: int
    """Programs that were compiled before the first request."""

    @property
    def running(self) -> int:
        """Requests that draw now."""

    @property
    def busy(self) -> bool:
        """Whether a request is not answered yet."""

    @property
    def recompilations(self) -> int:
        """Programs that had to be compiled while requests waited: there should be none."""

    @property
    def prefix_hits(self) -> int:
        """Chunks of prompts that did not have to be read."""

    @property
    def prefix_misses(self) -> int:
        """Chunks that had to be."""

    def start(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Get ready; `on_change` is called when it is, or when it has ended."""

    def hand_in(self, asked: Asked) -> None:
        """Take requests on."""

    async def load_adapter(self, name: str, place: str) -> Voice:
        """Read an adapter, and answer requests for its name with it from now on.

        Raises:
          UserError: it cannot be had.
          Refused: nothing can be loaded here.
        """

    async def unload_adapter(self, name: str) -> None:
        """Take no more requests for an adapter.

        Raises:
          UserError: there is none of this name.
          Refused: nothing can be unloaded here.
        """

    def forget(self, asked: Asked) -> None:
        """Take out what is left of them; nobody waits for it. What is over stays so."""

    def cut(self, asked: Asked | None = None) -> None:
        """End them, or everyone's, where they stand: they are told, with what was drawn so far."""

    def stop(self, timeout: float) -> bool:
        """End. Returns whether it did within `timeout` seconds."""
