"""A tensor that is still in its file: what it is, and how to read it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from gptj.errors import UserError
from gptj.files import File, Scratch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Matrix:
    """How a tensor's numbers lie in a file: row by row, as the tensor has them or transposed."""

    shape: tuple[int, int]
    rows: Callable[[int, int, Scratch], Shaped[np.ndarray, "rows columns"]]
    """Reads the rows from one to before another; they may lie in the scratch memory."""
    turned: bool = False
    checked: bool = False
    """Whether the last part to be read is refused if all do not have their checksum: each row is
    then to be read once."""


@dataclass(frozen=True)
class Tensor:
    """An array in a file, not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Shaped[np.ndarray, "..."]]
    """Reads it; the array is the caller's own, and may be a view in any memory order."""
    matrix: Matrix | None = None
    """Where it can be read in parts."""

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        # A file may claim any shape: Python's numbers do not wrap around.
        return math.prod(self.shape) * self.dtype.itemsize

    def read_into(self, out: Shaped[np.ndarray, "..."], readers: Readers) -> Callable[[], int]:
        """Begin to read it to `out`, in the type of that.

        What is returned waits for the end, and says how many elements are not numbers.
        """
        if self.matrix is not None:
            return _copy(out, self.matrix, readers)
        array = self.read()
        copy_into(out, array)
        nans = count_nans(array)
        return lambda: nans

    def sample(self, shape: tuple[int, int], most: int) -> Shaped[np.ndarray, "rows columns"]:
        """Where at most so many of its rows and columns cross, evenly spread, as a matrix.

        No more than those rows is read of a file that can be read in parts.
        """
        rows, columns = (np.arange(n) * size // n for size in shape for n in [min(size, most)])
        matrix = self.matrix
        if (
            matrix is None
            or matrix.checked
            or matrix.shape != (shape[::-1] if matrix.turned else shape)
        ):
            return self.read().reshape(shape)[np.ix_(rows, columns)]
        down, across = (columns, rows) if matrix.turned else (rows, columns)
        scratch = Scratch()
        found = np.stack([matrix.rows(n, n + 1, scratch)[0, across] for n in down.tolist()])
        return found.T if matrix.turned else found

    def viewed(self, shape: tuple[int, ...], turned: bool = False) -> Tensor:
        """The same numbers in another shape, those of a `turned` matrix transposed before."""
        matrix = self.matrix and replace(self.matrix, turned=self.matrix.turned != turned)

        def read() -> Shaped[np.ndarray, "..."]:
            array = self.read()
            return (array.T if turned else array).reshape(shape)

        return Tensor(shape, self.dtype, read, matrix)

    def cast(self, dtype: np.dtype[Any], name: str) -> Tensor:
        """The same in `dtype`, rounded to nearest; `name` is what an error calls it."""
        if dtype == self.dtype:
            return self

        def read() -> Shaped[np.ndarray, "..."]:
            array = self.read()
            with np.errstate(over="ignore"):
                narrow = array.astype(dtype)
            if dtype == np.float16 and np.isinf(narrow).sum() > np.isinf(array).sum():
                raise UserError(
                    f"{name} holds numbers beyond float16's largest, 65504: choose bfloat16 or "
                    "float32"
                )
            return narrow

        return Tensor(self.shape, dtype, read)

    def changed(self, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        """The tensor of `shape` that `change` makes of this one's array when it is read."""
        return Tensor(shape, self.dtype, lambda: change(self.read()))


def stored_at(file: File, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """The tensor whose elements lie in `file` from byte `offset` on, in row-major order."""

    def read() -> Shaped[np.ndarray, "..."]:
        return file.read(offset, offset + tensor.bytes).view(dtype).reshape(shape)

    def rows(begin: int, end: int, scratch: Scratch) -> Shaped[np.ndarray, "rows columns"]:
        width = shape[1] * dtype.itemsize
        part = file.read(offset + begin * width, offset + end * width, scratch)
        return part.view(dtype).reshape(end - begin, shape[1])

    tensor = Tensor(shape, dtype, read, Matrix(shape, rows) if len(shape) == 2 else None)
    return tensor


def count_nans(array: Shaped[np.ndarray, "..."]) -> int:
    """How many elements are not numbers.

    Sound arrays, nearly all, cost two maxima over the bits: a NaN is above infinity, taken as a
    signed integer where it is positive and as an unsigned one where it is negative.
    """
    if array.dtype.kind not in "fV":
        return 0
    size = array.dtype.itemsize
    infinity = int(np.array(np.inf, array.dtype).view(f"i{size}"))
    signed, unsigned = array.view(f"i{size}"), array.view(f"u{size}")
    if not array.size or (
        signed.max() <= infinity and unsigned.max() <= infinity + (1 << 8 * size - 1)
    ):
        return 0
    return int(np.isnan(array).sum())


def contiguous(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """`array` in row-major order: itself, or a copy."""
    if array.flags.c_contiguous:
        return array
    out = np.empty(array.shape, array.dtype)
    copy_into(out, array)
    return out


def copy_into(out: Shaped[np.ndarray, "..."], array: Shaped[np.ndarray, "..."]) -> None:
    """`out[...] = array`, ten times as fast as NumPy where `array` is a transposed matrix."""
    turned = _as_transposed(array)
    if turned is None:
        out[...] = array
        return
    stored = turned.T
    with Readers() as readers:
        _copy(out, Matrix(stored.shape, lambda begin, end, _: stored[begin:end], True), readers)()


THREADS = 4
"""More than there need be cores: some wait for the disk."""


class Readers(ThreadPoolExecutor):
    """Threads that read tensors in strips; an error ends what they have not begun."""

    def __init__(self) -> None:
        super().__init__(THREADS)
        self._own = threading.local()

    @property
    def scratch(self) -> tuple[Scratch, Scratch]:
        """The calling thread's own memory: for a strip as it is read, and for a tile of it."""
        if not hasattr(self._own, "scratch"):
            self._own.scratch = Scratch(), Scratch()
        found: tuple[Scratch, Scratch] = self._own.scratch
        return found

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown(cancel_futures=kind is not None)


STRIP_BYTES, STRIP_ROWS, LINE = 8 << 20, 4096, 64
"""Bytes read at once, at most so many rows, and a multiple of so many."""

TILE, PAD = (256, 256), 32
"""Rows and columns transposed at once, small enough for the cache, and the elements that set its
rows apart."""


def _copy(out: Shaped[np.ndarray, "..."], matrix: Matrix, readers: Readers) -> Callable[[], int]:
    """Begin to copy a matrix; what is returned waits, and says how many elements are no numbers."""
    rows, columns = matrix.shape
    into = np.reshape(out, (columns, rows) if matrix.turned else (rows, columns), copy=False)
    height = STRIP_BYTES // max(1, columns * out.dtype.itemsize) // LINE * LINE
    height = min(max(height, LINE), STRIP_ROWS)

    def strip(begin: int) -> int:
        end = min(begin + height, rows)
        whole, tile = readers.scratch
        part = matrix.rows(begin, end, whole)
        if matrix.turned:
            _transpose(into[:, begin:end], part, tile)
        else:
            into[begin:end] = part
        return count_nans(part)

    strips = [readers.submit(strip, begin) for begin in range(0, rows, height)]
    return lambda: sum(nans.result() for nans in strips)


def _transpose(
    out: Shaped[np.ndarray, "columns rows"], part: Shaped[np.ndarray, "rows columns"], tile: Scratch
) -> None:
    """`out[...] = part.T`, tile by tile.

    NumPy would walk along the rows of a transposed matrix and find each element in another line
    of the cache, and all of them in one set of it where the width is a power of two. A tile is
    therefore first put aside, at a width that is none.
    """
    (rows, columns), (high, wide) = part.shape, TILE
    pitch = wide + PAD
    aside = tile.take(rows * pitch * out.itemsize).view(out.dtype).reshape(rows, pitch)
    for left in range(0, columns, wide):
        right = min(left + wide, columns)
        piece = aside[:, : right - left]
        piece[...] = part[:, left:right]
        for top in range(0, rows, high):
            out[left:right, top : top + high] = piece[top : top + high].T


def _as_transposed(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "rows columns"] | None:
    """A view of `array` as the transpose of a row-major matrix, if it is one."""
    for split in range(1, array.ndim):
        shape = int(np.prod(array.shape[:split])), int(np.prod(array.shape[split:]))
        try:
            matrix = np.reshape(array, shape, copy=False)
        except ValueError:  # it would have to be copied
            continue
        if matrix.flags.f_contiguous and not matrix.flags.c_contiguous:
            return matrix
    return None
