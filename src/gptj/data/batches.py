"""Token stores to rows of tokens: what step number N trains on, and how a store is scored."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptj.data.mixture import Mixture
from gptj.data.packing import PackedRows, PairRows, pack, pair
from gptj.data.store import TokenStore, ids_of
from gptj.errors import UserError


@dataclass(frozen=True, eq=False)
class TextRows:
    """Row i is tokens[i * seq : i * seq + seq + 1] of a store.

    Neighbours share one token, the last target of one and the first input of the other, so that
    every token but the first is a target once. The tokens after the last whole row, fewer than
    `seq`, are in none.
    """

    store: TokenStore
    seq: int

    def __len__(self) -> int:
        return (len(self.store) - 1) // self.seq

    @property
    def width(self) -> int:
        """Tokens in a row."""
        return self.seq + 1

    def tokens(self, row: int) -> range:
        """Which of the store's tokens a row holds."""
        return range(row * self.seq, (row + 1) * self.seq + 1)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens of some rows; shape (rows, seq + 1)."""
        return self.store.tokens.windows(rows * self.seq, self.seq + 1)


@functools.lru_cache(maxsize=8)  # examples are packed once, and not at every evaluation
def rows_of_store(store: TokenStore, seq: int) -> TextRows | PackedRows | PairRows:
    """What a store's rows of `seq` targets are: of texts any stretch, of examples whole ones.

    A pair of answers is two such rows in one.

    Raises:
      UserError: there is no row of so many.
    """
    if store.manifest.examples:
        return pair(store, seq) if store.manifest.examples == "preferences" else pack(store, seq)
    if len(store) <= seq:
        raise UserError(
            f"seq={seq} is longer than the data: {store} holds {len(store)} tokens, enough for a "
            f"seq of at most {len(store) - 1}; shorten seq or prepare more text"
        )
    return TextRows(store, seq)


class TrainBatches:
    """The endless, shuffled training data: each epoch holds every row once, in its own order.

    The rows of a mixture's parts are numbered one part after the other; each part has its own
    epochs, and its turn as often as its weight says.

    What a step gives is a pure function of (fingerprint, seed, step): the state of the data is the
    step's number, whatever came before and however many hosts ask.
    """

    def __init__(self, data: Mixture, seq: int, batch: int, seed: int = 0) -> None:
        """Batches of `batch` rows of `seq` targets.

        Raises:
          UserError: `seq` or `batch` is below 1, or a part has no row of `seq` targets.
        """
        _check_shape(seq, batch)
        self._parts = [rows_of_store(part.store, seq) for part in data.parts]
        self._order = data.order if len(data.parts) > 1 else None
        self._sizes = np.array([len(part) for part in self._parts])
        self._bounds = np.concatenate([[0], np.cumsum(self._sizes)])
        self.n_rows = int(self._bounds[-1])
        self._batch, self._seed = batch, seed
        self.width = self._parts[0].width
        """Tokens in a row."""

    def row_ids(self, step: int) -> NDArray[np.int64]:
        """Which rows make up batch number `step`; shape (batch,)."""
        positions = np.arange(step * self._batch, (step + 1) * self._batch)
        if self._order is None:
            return self._shuffled(0, positions)
        parts, numbers = self._order.turns(positions)
        rows = np.empty_like(positions)
        for part in np.unique(parts).tolist():
            mine = parts == part
            rows[mine] = self._bounds[part] + self._shuffled(part, numbers[mine])
        return rows

    def epochs(self, steps: int) -> list[float]:
        """How often the rows of each part are read in so many steps."""
        rows = steps * self._batch
        counts = np.array([rows]) if self._order is None else self._order.counts(rows)
        return (counts / self._sizes).tolist()

    def _shuffled(self, part: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of a part's rows have these numbers in its endless order."""
        size = int(self._sizes[part])
        epochs, within = np.divmod(numbers, size)
        rows = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            key = f"{self._parts[part].store.fingerprint}:{self._seed}:{epoch}".encode()
            rows[epochs == epoch] = permute(within[epochs == epoch], size, key)
        return rows

    def place(self, row: int) -> tuple[TokenStore, range]:
        """Where a row lies: the store, and the tokens of it."""
        number = int(np.searchsorted(self._bounds, row, "right")) - 1
        part = self._parts[number]
        return part.store, part.tokens(row - int(self._bounds[number]))

    @property
    def left_out(self) -> int:
        """Examples that no row is long enough for."""
        return sum(part.left_out for part in self._parts if not isinstance(part, TextRows))

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """The tokens of these rows, of any shape; a dim of `width` is added.

        Of examples, those that are only read are complements (`gptj.data.store.ids_of`).
        """
        parts = np.searchsorted(self._bounds, ids, "right") - 1
        found = np.empty((*ids.shape, self.width), np.int32)
        for part in np.unique(parts).tolist():
            mine = parts == part
            found[mine] = self._parts[part].read(ids[mine] - self._bounds[part])
        return found

    def batch(self, step: int) -> NDArray[np.int32]:
        """The tokens of batch number `step`; shape (batch, width)."""
        return self.rows(self.row_ids(step))


class EvalBatches:
    """The store in order, no token scored more than once, all batches of one shape.

    Iterating gives (tokens, weights) of shapes (batch, seq + 1) and (batch, seq): `weights` is 1
    where the target tokens[:, 1:] is the store's, 0 where the last batch is padded. Before the
    first token stands one end-of-text, as before the first token of every other document.

    Examples come whole, in rows of their own, and what is only read has weight 0.
    """

    def __init__(self, store: TokenStore, seq: int, batch: int, limit: int | None = None) -> None:
        """Batches of `batch` rows of `seq` targets: all, or `limit` spread evenly over the store.

        Raises:
          UserError: `seq`, `batch` or `limit` is below 1.
        """
        _check_shape(seq, batch)
        if limit is not None and limit < 1:
            raise UserError(f"limit={limit} must be at least 1 batch, or left out for all of them")
        self._store = store
        self._seq = seq
        self._batch = batch
        rows = rows_of_store(store, seq) if store.manifest.examples else None
        self._examples = None if isinstance(rows, TextRows) else rows
        n_rows = -(-len(store) // seq) if self._examples is None else len(self._examples)
        whole = -(-n_rows // batch)
        length = whole if limit is None else min(whole, limit)
        self._chosen = np.arange(length) * whole // length

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._chosen)

    def __iter__(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        for number in range(len(self)):
            yield self.rows(number, slice(None)), self.weights(number, slice(None))

    def rows(self, number: int, part: slice) -> NDArray[np.int32]:
        """The tokens of some of the rows of a batch; no others are read."""
        if self._examples is not None:
            return ids_of(self.stored(number, part))
        first, past, _ = part.indices(self._batch)
        start = (int(self._chosen[number]) * self._batch + first) * self._seq
        size = (past - first) * self._seq
        targets = self._store.tokens[start : start + size]
        stream = np.full(size + 1, self._store.tokenizer.eos_id, np.int32)
        stream[1 : len(targets) + 1] = targets
        if 0 < start <= len(self._store):
            stream[0] = self._store.tokens[start - 1]
        windows = np.arange(past - first)[:, None] * self._seq + np.arange(self._seq + 1)
        return stream[windows]

    def stored(self, number: int, part: slice) -> NDArray[np.int32]:
        """Some of the rows of a batch of examples as they are stored."""
        assert self._examples is not None
        first, past, _ = part.indices(self._batch)
        return self._examples.read(int(self._chosen[number]) * self._batch + np.arange(first, past))

    def weights(self, number: int, part: slice) -> NDArray[np.float32]:
        """The weights of some of the rows of a batch."""
        if self._examples is not None:
            return (self.stored(number, part)[:, 1:] >= 0).astype(np.float32)
        size = self._batch * self._seq
        positions = int(self._chosen[number]) * size + np.arange(size)
        weights = (positions < len(self._store)).astype(np.float32)
        return weights.reshape(self._batch, self._seq)[part]


def permute(positions: NDArray[np.int64], n: int, key: bytes) -> NDArray[np.int64]:
    """Where the permutation of 0..n-1 named by `key` sends each position; shape (batch,).

    A Feistel network is a bijection of 2^(2k) values; walking on while a value is n or more
    restricts it to n of them. Unlike a shuffled array it costs no memory and no start-up at any
    n, and unlike NumPy's generators, whose streams may change between versions, it is ours.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    round_keys = np.frombuffer(hashlib.blake2b(key).digest(), "<u8")
    values = _feistel(positions.astype(np.uint64), half, round_keys)
    while (outside := values >= n).any():
        values[outside] = _feistel(values[outside], half, round_keys)
    return values.astype(np.int64)


def _feistel(
    values: NDArray[np.uint64], half: np.uint64, round_keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return left << half | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): every bit in moves every bit out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _check_shape(seq: int, batch: int) -> None:
    for name, value in (("seq", seq), ("batch", batch)):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
