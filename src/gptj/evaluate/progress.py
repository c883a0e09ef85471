"""How far an evaluation is: a live line on a terminal that can, else a line now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from gptj.train.progress import clock

SECONDS = 10.0
"""Between two lines where there is no live one."""


class Progress:
    """Says how far each part of an evaluation is, and how long it is going to take."""

    def __init__(self, console: Console | None) -> None:
        """`console`: where it is said; nowhere without."""
        self.console = console or Console(quiet=True)

    @contextlib.contextmanager
    def of(self, what: str, total: int, done: int = 0) -> Iterator[Part]:
        """A part of `total` requests, of which `done` were known before."""
        if done:
            self.console.print(
                f"{done:,} of {total:,} requests were {what} before: going on from there",
                highlight=False,
            )
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            yield Part(self.console, what, total, done, None)
            return
        columns = TextColumn(what), BarColumn(bar_width=24), MofNCompleteColumn()
        with Bars(*columns, TimeRemainingColumn(), console=self.console, transient=True) as bars:
            yield Part(self.console, what, total, done, bars)


class Part:
    """One part under way."""

    def __init__(
        self, console: Console, what: str, total: int, done: int, bars: Bars | None
    ) -> None:
        self._console, self._what, self._total, self._bars = console, what, total, bars
        self._done = done
        self._start: int | None = None  # until one is known, which was mostly compiling
        self._begin = self._said = time.monotonic()
        self._task = bars.add_task(what, total=total, completed=done) if bars else None

    def advance(self) -> None:
        """One more is known."""
        self._done += 1
        if self._bars and self._task is not None:
            self._bars.advance(self._task)
            return
        now = time.monotonic()
        if self._start is None:
            self._start, self._begin, self._said = self._done, now, now
            return
        if now - self._said >= SECONDS and self._done < self._total:
            left = (now - self._begin) / (self._done - self._start) * (self._total - self._done)
            self._said = now
            self._console.print(
                f"{self._what} {self._done:,}/{self._total:,}  left {clock(left)}", highlight=False
            )
