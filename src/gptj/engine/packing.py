"""Texts laid out for scoring: many in a row of tokens, and what several begin with only once.

In a row each text is a branch of a tree, and a token sees those on its way to the root. Laid out
branch after branch, a token's descendants stand right after it: one number a token, where they end,
says who sees it. Scoring four answers to one question then reads the question once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

SHORTEST = 512
"""Tokens of a row, or a power of two times as many where a text is longer."""


class Asked(NamedTuple):
    """What is scored: tokens after a context, both token ids; the context is never empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def read(self) -> tuple[int, ...]:
        """What the model reads: all tokens but the last, after which nothing is asked."""
        return (*self.context, *self.continuation)[:-1]


@dataclasses.dataclass
class Row:
    """Some texts side by side. What lies beyond them is seen by no one but itself."""

    tokens: Int32[np.ndarray, " length"]
    positions: Int32[np.ndarray, " length"]
    ends: Int32[np.ndarray, " length"]
    """One past the last token that sees this one."""
    places: Int32[np.ndarray, " length"]
    """After which token each scored token stands, and"""
    targets: Int32[np.ndarray, " length"]
    """which it is."""
    texts: list[int] = dataclasses.field(default_factory=list)
    """Whose tokens these are, in turn."""
    used: int = 0
    scored: int = 0

    @classmethod
    def empty(cls, length: int) -> Row:
        """One of so many tokens, none of which is a text's."""
        zeros = (np.zeros(length, np.int32) for _ in range(4))
        tokens, positions, places, targets = zeros
        return cls(tokens, positions, np.arange(1, length + 1, dtype=np.int32), places, targets)

    def add(self, number: int, asked: Asked, path: list[int], common: int) -> bool:
        """Add a text whose first `common` tokens stand at the first places of `path` already.

        Afterwards these are all of its own. False, and nothing done, where there is no room.
        """
        read, end = asked.read, self.used + len(asked.read) - common
        scored = self.scored + len(asked.continuation)
        if max(end, scored) > len(self.tokens):
            return False
        new = slice(self.used, end)
        self.tokens[new], self.positions[new] = read[common:], np.arange(common, len(read))
        path[common:] = range(self.used, end)
        self.ends[path] = end
        asked_for = slice(self.scored, scored)
        self.places[asked_for] = path[len(asked.context) - 1 :]
        self.targets[asked_for] = asked.continuation
        self.texts.append(number)
        self.used, self.scored = end, scored
        return True


def pack(asked: Sequence[Asked]) -> Iterator[Row]:
    """Rows that hold all of them: short texts together, alike ones next to each other."""
    reads = [each.read for each in asked]
    by_length: dict[int, list[int]] = {}
    for number, read in enumerate(reads):
        doublings = max(0, (len(read) - 1) // SHORTEST).bit_length()
        by_length.setdefault(SHORTEST << doublings, []).append(number)
    for length, numbers in sorted(by_length.items()):
        row, path, before = Row.empty(length), list[int](), tuple[int, ...]()
        for number in sorted(numbers, key=reads.__getitem__):
            common = _common(before, reads[number])
            if not row.add(number, asked[number], path, common):
                yield row
                row, path = Row.empty(length), []
                row.add(number, asked[number], path, 0)
            before = reads[number]
        yield row


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    differ = np.not_equal(one[:length], other[:length]).nonzero()[0]
    return int(differ[0]) if len(differ) else length
