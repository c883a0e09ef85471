"""Stopping politely: the first Ctrl-C or SIGTERM asks, the second insists."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """Within the context, `requested` turns true at the first signal; the second one raises.

    Outside the main thread, where Python has no signals, nothing is ever requested.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.requested = False
        self._announce = announce

    def __enter__(self) -> StopOnSignal:
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._before = [signal.signal(number, self._handle) for number in _SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            for number, handler in zip(_SIGNALS, self._before, strict=True):
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        with contextlib.suppress(RuntimeError):  # the signal came while the same stream was written
            self._announce("stopping after this step and saving; once more stops without saving")
