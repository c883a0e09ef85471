"""Arrays that lie one after the other in files, read where they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from gptj.files import File

THREADS = 16
"""Readers of a remote file at a time."""


@dataclass(frozen=True, eq=False)
class Run:
    """The first `size` numbers in a file."""

    file: File
    dtype: np.dtype[Any]
    size: int

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Those from `start` up to `stop`."""
        if self._mapped is not None:
            return self._mapped[start:stop]
        width = self.dtype.itemsize
        return self.file.read(start * width, stop * width).view(self.dtype)

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[Any]:
        """`length` of them from each of `starts` on; shape (starts, length)."""
        if self._mapped is not None:
            return self._mapped[starts[:, None] + np.arange(length)]
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(lambda start: self.read(start, start + length), starts.tolist())
            return np.stack(list(found))

    @cached_property
    def _mapped(self) -> NDArray[Any] | None:
        """The file in memory's place, if it is on this machine."""
        if self.file.remote is not None or not self.file.size:
            return None
        return np.memmap(self.file.held_at or self.file.path, self.dtype, "r", shape=self.size)


class Joined:
    """Runs one after the other, or a part of them, as one array of one dim.

    It is read by slices and by `windows`; `numpy.asarray` reads it all. It is a run itself.
    """

    def __init__(
        self, runs: Sequence[Run | Joined], start: int = 0, stop: int | None = None, plus: int = 0
    ) -> None:
        """Of the runs' numbers those from `start` up to `stop`, `plus` added to each."""
        self._runs = runs
        self._bounds = np.cumsum([0, *(run.size for run in runs)])
        self._start = start
        self._stop = int(self._bounds[-1]) if stop is None else stop
        self._plus = plus

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers in the files."""
        return self._runs[0].dtype

    @property
    def size(self) -> int:
        """How many there are."""
        return self._stop - self._start

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> NDArray[Any]: ...
    def __getitem__(self, index: int | slice) -> int | NDArray[Any]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self.size)
            assert step == 1
            return self.read(start, max(start, stop))
        assert 0 <= index < self.size
        return int(self.read(index, index + 1)[0])

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        return np.array(self[:], dtype)

    def view(self, start: int, stop: int, plus: int = 0) -> Joined:
        """Those from `start` up to `stop`, `plus` added to each; nothing is read."""
        return Joined([self], start, stop, plus)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Those from `start` up to `stop`."""
        start, stop = start + self._start, stop + self._start
        parts = []
        first = int(np.searchsorted(self._bounds, start, "right")) - 1
        for number in range(first, len(self._runs)):
            begin, run = int(self._bounds[number]), self._runs[number]
            if begin >= stop:
                break
            parts.append(run.read(max(0, start - begin), min(run.size, stop - begin)))
        if not parts:
            return np.empty(0, self.dtype)
        found = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return np.asarray(found, np.int64) + self._plus if self._plus else found

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """`length` numbers from each of `starts` on; a dim of `length` is added."""
        flat = starts.reshape(-1) + self._start
        first = np.searchsorted(self._bounds, flat, "right") - 1
        last = np.searchsorted(self._bounds, flat + length - 1, "right") - 1
        found = np.empty((len(flat), length), np.int64)
        for number in np.unique(first).tolist():
            inside = (first == number) & (last == number)
            if inside.any():
                own = flat[inside] - self._bounds[number]
                found[inside] = self._runs[number].windows(own, length)
        for index in np.flatnonzero(first != last).tolist():
            begin = int(flat[index]) - self._start
            found[index] = self.read(begin, begin + length) - self._plus
        return found.reshape(*starts.shape, length) + self._plus
