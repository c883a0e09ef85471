"""A tensor that is still in its file: what it is, and how to read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from gptj.convert.files import File
from gptj.errors import UserError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Tensor:
    """An array in a file, not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Shaped[np.ndarray, "..."]]
    """Reads it; the array is the caller's own, and may be a view in any memory order."""

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

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

    tensor = Tensor(shape, dtype, read)
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
