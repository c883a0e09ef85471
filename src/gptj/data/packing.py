"""Examples in rows: whole ones side by side, as many as there is room for, none cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptj.data.store import TokenStore
from gptj.errors import UserError

BEGINS = 1 << 30
"""A bit that no id has: flipped in that of a row's token where an example begins, or padding. What
ends an answer within a chat is the same end-of-text, and ends no example."""

READ = 1 << 24
"""Tokens that are looked through at a time."""


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Where rows begin in a store, and how many tokens each has; the rest of it is padding."""

    store: TokenStore
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    width: int
    """Tokens that there is room for."""
    left_out: int
    """Examples that are longer than a row."""
    begins: NDArray[np.int64]
    """Where each of the store's examples begins."""

    def __len__(self) -> int:
        return len(self.starts)

    def tokens(self, row: int) -> range:
        """Which of the store's tokens a row holds."""
        start = int(self.starts[row])
        return range(start, start + int(self.lengths[row]))

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """The tokens of some rows as they are stored, but for `BEGINS`; shape (rows, width).

        The padding is end-of-text, each a document of its own, which is only read; rows past the
        last are nothing else.
        """
        padding = ~(self.store.tokenizer.eos_id | BEGINS)
        found = np.full((len(rows), self.width), padding, np.int32)
        for into, row in zip(found, rows.tolist(), strict=True):
            if row < len(self):
                own = self.tokens(row)
                into[: len(own)] = self.store.tokens[own.start : own.stop]
                first, past = np.searchsorted(self.begins, (own.start, own.stop))
                into[self.begins[first:past] - own.start] ^= BEGINS
        return found


@dataclass(frozen=True, eq=False)
class PairRows:
    """Two answers to one prompt, each in a row of its own, the rows side by side."""

    store: TokenStore
    bounds: NDArray[np.int64]
    """Where the first answer's row begins in the store, and the second's, and that ends."""
    width: int
    """Tokens that there is room for, in the two together."""
    left_out: int
    """Pairs of which a row is too short for one."""

    def __len__(self) -> int:
        return len(self.bounds)

    def tokens(self, row: int) -> range:
        """Which of the store's tokens a pair is."""
        return range(int(self.bounds[row, 0]), int(self.bounds[row, 2]))

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """The tokens of some pairs as they are stored; shape (rows, width).

        The padding is end-of-text, as are rows past the last.
        """
        found = np.full((len(rows), 2, self.width // 2), ~self.store.tokenizer.eos_id, np.int32)
        for into, row in zip(found, rows.tolist(), strict=True):
            if row < len(self):
                first, second, end = self.bounds[row].tolist()
                into[0, : second - first] = self.store.tokens[first:second]
                into[1, : end - second] = self.store.tokens[second:end]
        return found.reshape(len(rows), self.width)


def pair(store: TokenStore, seq: int) -> PairRows:
    """Each of the store's preferences in two rows of `seq` targets.

    Raises:
      UserError: every pair is longer than that.
    """
    begin, eos = np.append(store.starts[:], len(store)), store.tokenizer.eos_id
    blocks = range(0, len(store), READ)
    ends = np.concatenate(
        [np.flatnonzero(store.tokens[at : at + READ] == eos) + at + 1 for at in blocks]
    )
    bounds = np.stack([begin[:-1], ends[::2], begin[1:]], axis=1)
    longest = np.diff(bounds).max(axis=1)
    kept = bounds[longest <= seq + 1]
    if not len(kept):
        raise UserError(
            f"seq={seq} is shorter than every pair of {store}, the shortest of which has "
            f"{int(longest.min())} tokens in an answer: raise seq"
        )
    return PairRows(store, kept, 2 * (seq + 1), len(bounds) - len(kept))


def pack(store: TokenStore, seq: int) -> PackedRows:
    """Fill rows of `seq` targets with the store's examples, in their order.

    Raises:
      UserError: every example is longer than that.
    """
    width = seq + 1
    bounds = np.append(store.starts[:], len(store))
    fits = np.diff(bounds) <= width
    past = np.searchsorted(bounds, bounds[:-1] + width, "right") - 1  # the first with no room
    rows: list[int] = []
    document = 0
    while document < len(fits):
        if fits[document]:
            rows.append(document)
        document = max(document + 1, int(past[document]))
    if not rows:
        raise UserError(
            f"seq={seq} is shorter than every example of {store}, the shortest of which has "
            f"{shortest(store)} tokens: raise seq"
        )
    begin = np.array(rows)
    starts = bounds[begin]
    lengths = bounds[past[begin]] - starts
    return PackedRows(store, starts, lengths, width, int(np.sum(~fits)), bounds[:-1])


def shortest(store: TokenStore) -> int:
    """Tokens of the store's shortest example, its end with it."""
    return int(np.diff(np.append(store.starts[:], len(store))).min())
