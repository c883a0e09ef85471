"""The queue, counted in tokens: who would make it too long is told when to come back."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from gptj.serve.refusal import Refused

WINDOW = 30.0
"""Seconds over which the queue's speed is measured."""

LONGEST_WAIT = 300
"""Seconds that a client is told to wait at most."""


class Place:
    """Where the requests of one client stand in the queue."""

    def __init__(self, queue: Queue, costs: Sequence[int]) -> None:
        self._queue, self._waiting = queue, dict(enumerate(costs))

    def leave(self, index: int) -> None:
        """One of the requests waits no longer; it may be said more than once."""
        if index in self._waiting:
            self._queue.left(self._waiting.pop(index))

    def leave_all(self) -> None:
        """None of them does."""
        for index in list(self._waiting):
            self.leave(index)


class Queue:
    """The tokens that wait to be read and drawn. For the event loop alone."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.tokens, self.requests = most, 0, 0
        self._clock, self._gone = clock, deque[tuple[float, int]]()

    def check(self) -> None:
        """Refuse whoever comes now if even the shortest request would be too much.

        Raises:
          Refused: 429, with the seconds after which to try again.
        """
        if self.tokens >= self.most:
            raise self._full()

    @contextlib.contextmanager
    def place(self, costs: Sequence[int]) -> Iterator[Place]:
        """A place for requests of so many tokens, until they leave it or the context ends.

        A queue that is empty takes anyone.

        Raises:
          Refused: 429, with the seconds after which to try again.
        """
        if self.tokens and self.tokens + sum(costs) > self.most:
            raise self._full()
        self.tokens += sum(costs)
        self.requests += len(costs)
        place = Place(self, costs)
        try:
            yield place
        finally:
            place.leave_all()

    def left(self, cost: int) -> None:
        """A request of so many tokens waits no longer."""
        self.tokens -= cost
        self.requests -= 1
        self._gone.append((self._clock(), cost))
        self._forget()

    def _forget(self) -> None:
        while self._gone and self._gone[0][0] < self._clock() - WINDOW:
            self._gone.popleft()

    def seconds(self) -> int:
        """How long the queue takes to empty, at the speed it had of late."""
        self._forget()
        if not self._gone:
            return 1
        passed = max(1.0, self._clock() - self._gone[0][0])
        speed = sum(cost for _, cost in self._gone) / passed
        return min(LONGEST_WAIT, max(1, math.ceil(self.tokens / speed))) if speed else LONGEST_WAIT

    def _full(self) -> Refused:
        wait = self.seconds()
        return Refused(
            429,
            f"{self.tokens} tokens wait and the queue has room for {self.most}: try again in "
            f"{wait} seconds",
            code="queue_full",
            headers={"retry-after": str(wait)},
        )
