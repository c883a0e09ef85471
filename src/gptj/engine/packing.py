"""Texts laid out for scoring: many in a row of tokens, and what several begin with only once.

In a row each text is a branch of a tree, and a token sees those on its way to the root. Laid out
branch after branch, a token's descendants stand right after it: one number a token, where they end,
says who sees it. Scoring four answers to one question then reads the question once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

SHORTEST = 512
"""Tokens of a row: twice as many where the texts do not fit into one, so that less of a row's end
stays empty; or a power of two times as many where a text is longer."""


HEAD = 32
"""Tokens of a text that are compared at once; most texts differ in them."""

Ids = Int32[np.ndarray, " length"]


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Asked:
    """What is scored: the last `scored` of some tokens, after those before them, one at least.

    The tokens may be a view of a longer text, so that its windows take no memory of their own.
    """

    tokens: Ids
    scored: int

    @classmethod
    def of(cls, context: Sequence[int], continuation: Sequence[int]) -> Asked:
        """A continuation after a context."""
        return cls(np.array([*context, *continuation], np.int32), len(continuation))

    @property
    def context(self) -> Ids:
        """What comes before; never empty."""
        return self.tokens[: len(self.tokens) - self.scored]

    @property
    def continuation(self) -> Ids:
        """What is scored."""
        return self.tokens[len(self.tokens) - self.scored :]

    @property
    def read(self) -> Ids:
        """What the model reads: all tokens but the last, after which nothing is asked."""
        return self.tokens[:-1]


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
        scored = self.scored + asked.scored
        if max(end, scored) > len(self.tokens):
            return False
        new = slice(self.used, end)
        self.tokens[new], self.positions[new] = read[common:], np.arange(common, len(read))
        path[common:] = range(self.used, end)
        self.ends[path] = end
        asked_for = slice(self.scored, scored)
        self.places[asked_for] = path[len(read) - asked.scored :]
        self.targets[asked_for] = asked.continuation
        self.texts.append(number)
        self.used, self.scored = end, scored
        return True


def pack(asked: Sequence[Asked]) -> Iterator[Row]:
    """Rows that hold all of them: short texts together, alike ones next to each other."""
    shortest = SHORTEST << (sum(len(each.read) for each in asked) > SHORTEST)
    by_length: dict[int, list[int]] = {}
    for number, each in enumerate(asked):
        doublings = max(0, (len(each.read) - 1) // shortest).bit_length()
        by_length.setdefault(shortest << doublings, []).append(number)
    for length, numbers in sorted(by_length.items()):
        row, path, before = Row.empty(length), list[int](), np.empty(0, np.int32)
        for number in sorted(numbers, key=lambda number: _place(asked[number].read)):
            read = asked[number].read
            common = _common(before, read)
            if not row.add(number, asked[number], path, common):
                yield row
                row, path = Row.empty(length), []
                row.add(number, asked[number], path, 0)
            before = read
        yield row


def _place(read: Ids) -> tuple[bytes, Any]:
    """Sorts as the tokens do, without a copy of more than their head."""
    return read[:HEAD].astype(">i4").tobytes(), _whole(read)


@functools.cmp_to_key
def _whole(one: Ids, other: Ids) -> int:
    """Which comes first, token by token; what another begins with comes before it."""
    at = _common(one, other)
    rests = one[at : at + 1].tolist(), other[at : at + 1].tolist()
    return (rests[0] > rests[1]) - (rests[0] < rests[1])


def _common(one: Ids, other: Ids) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    differ = np.not_equal(one[:length], other[:length]).nonzero()[0]
    return int(differ[0]) if len(differ) else length
