"""A tensor that is still in its file: what it is, and how to read it."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from gptj.convert.files import File
from gptj.errors import UserError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Matrix:
    """How a tensor's numbers lie in a file: row by row, as the tensor has them or transposed."""

    shape: tuple[int, int]
    rows: Callable[[int, int], Shaped[np.ndarray, "rows columns"]]
    """Reads the rows from one to before another."""
    turned: bool = False


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

    def read_into(self, out: Shaped[np.ndarray, "..."]) -> int:
        """Read it to `out`, in the type of that; returns how many elements are not numbers."""
        if self.matrix is not None:
            return _copy(out, self.matrix)
        array = self.read()
        copy_into(out, array)
        return count_nans(array)

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

    def rows(begin: int, end: int) -> Shaped[np.ndarray, "rows columns"]:
        width = shape[1] * dtype.itemsize
        part = file.read(offset + begin * width, offset + end * width)
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
    _copy(out, Matrix(stored.shape, lambda begin, end: stored[begin:end], turned=True))


def _copy(out: Shaped[np.ndarray, "..."], matrix: Matrix) -> int:
    """Copy a matrix in strips that fit into the cache; returns how many elements are no numbers.

    NumPy would walk along the rows of a transposed matrix and find each element in another line
    of the cache, and all of them in one set of it where the width is a power of two. A strip is
    therefore first put aside, at a width that is none.
    """
    rows, columns = matrix.shape
    into = np.reshape(out, (columns, rows) if matrix.turned else (rows, columns), copy=False)

    height = max(1, STRIP_BYTES // max(1, columns * out.dtype.itemsize) // LINE) * LINE
    begins = iter(range(0, rows, height))  # shared, so that the file is read from start to end

    def strips(_: int) -> int:
        nans, aside = 0, np.empty((height, columns + PAD), out.dtype)[:, :columns]
        for begin in begins:
            end = min(begin + height, rows)
            strip = matrix.rows(begin, end)
            nans += count_nans(strip)
            if matrix.turned:
                aside[: end - begin] = strip
                into[:, begin:end] = aside[: end - begin].T
            else:
                into[begin:end] = strip
        return nans

    with ThreadPoolExecutor(THREADS) as pool:  # reading and copying release Python's lock
        return sum(pool.map(strips, range(THREADS)))


STRIP_BYTES, LINE, PAD = 1 << 22, 64, 32
"""Bytes copied at once, in a multiple of so many rows, set apart by so many elements."""

THREADS = 4
"""More than there need be cores: some wait for the disk."""


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
