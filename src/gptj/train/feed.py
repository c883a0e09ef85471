"""Rows for the devices: which, read ahead of need, each host reading its own."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Array, Int
from numpy.typing import NDArray

from gptj.data.batches import TrainBatches
from gptj.sharding import Part, local_parts, place_parts
from gptj.train.rows import Skip, batch_index

Key = tuple[tuple[int | None, int | None], ...]
"""A part of an array, where slices cannot be looked up."""


class Feed:
    """The rows of every update, of shape (accumulate, batch, width) on the mesh that is set.

    While the devices work on one update, a thread reads the rows of the next.
    """

    def __init__(
        self, batches: TrainBatches, batch: int, accumulate: int, skips: list[Skip]
    ) -> None:
        self.skips, self._batches = skips, batches
        self._shape = (accumulate, batch // accumulate, batches.width)
        self._axes = (None, "batch", None)
        self._parts = {_key(part): part for part in local_parts(self._shape, *self._axes)}
        self._thread = ThreadPoolExecutor(1, "gptj-feed")
        self._next: tuple[int, Future[dict[Key, NDArray[np.int32]]]] | None = None

    def ids(self, update: int) -> NDArray[np.int64]:
        """Which rows update number `update`, counted from 0, trains on; (accumulate, batch)."""
        ids = self._batches.row_ids(batch_index(update, self.skips))
        return ids.reshape(self._shape[:2])

    def rows(self, update: int) -> Int[Array, "accumulate batch width"]:
        """The tokens of those rows, and a start on the next update's."""
        if self._next is None or self._next[0] != update:
            self._begin(update)
        assert self._next is not None
        read = self._next[1].result()
        self._begin(update + 1)
        return place_parts(self._shape, lambda part: read[_key(part)], *self._axes)

    def forget(self) -> None:
        """What was read ahead is not what comes next, after the run went back."""
        self._next = None

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _begin(self, update: int) -> None:
        self._next = update, self._thread.submit(self._read, update)

    def _read(self, update: int) -> dict[Key, NDArray[np.int32]]:
        ids = self.ids(update)
        return {key: self._batches.rows(ids[part[:2]]) for key, part in self._parts.items()}


def _key(part: Part) -> Key:
    return tuple((dim.start, dim.stop) for dim in part)
