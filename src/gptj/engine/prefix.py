"""What prompts begin with, kept: a prompt that begins as one before it need not be read again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import jax
import numpy as np

from gptj.engine.cache import Cache


class PrefixCache:
    """Keys and values by the tokens that lead to them, a chunk at a time, within some bytes.

    A chunk's name is a hash of all tokens up to its end. The one that was used the longest time ago
    goes first; a prompt's later chunks, used with its earlier ones, are the older in that order.
    """

    def __init__(self, most_bytes: int, chunk: int) -> None:
        self.hits = self.misses = 0
        """Chunks found, and chunks that had to be read."""
        self._kept: OrderedDict[bytes, Cache] = OrderedDict()
        self._most, self._chunk, self._bytes = most_bytes, chunk, 0

    def __len__(self) -> int:
        return len(self._kept)

    def names(self, tokens: Sequence[int], kind: bytes = b"") -> list[bytes]:
        """The names of a prompt's whole chunks; those of one kind are not found by another."""
        if not self._most:
            return []
        sha, names = hashlib.sha256(kind), []
        for end in range(self._chunk, len(tokens) + 1, self._chunk):
            sha.update(np.array(tokens[end - self._chunk : end], np.int32).tobytes())
            names.append(sha.digest())
        return names

    def find(self, names: Sequence[bytes]) -> list[Cache]:
        """The chunks that a prompt begins with, as many as are kept."""
        found = []
        for name in names:
            if name not in self._kept:
                break
            found.append(self._kept[name])
        self._touch(names[: len(found)])
        self.hits += len(found)
        self.misses += len(names) - len(found)
        return found

    def wants(self, name: bytes) -> bool:
        """Whether a chunk just read should be given to `keep`."""
        return name not in self._kept

    def keep(self, names: Sequence[bytes], chunk: Cache) -> None:
        """Keep the last of these chunks of a prompt, and let go of others if there is no room."""
        size = sum(array.nbytes for array in jax.tree.leaves(chunk))
        if size > self._most:
            return
        self._kept[names[-1]] = chunk
        self._touch(names)
        self._bytes += size
        while self._bytes > self._most:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= sum(array.nbytes for array in jax.tree.leaves(gone))

    def _touch(self, names: Sequence[bytes]) -> None:
        """These were used now; a chunk is of no use without those before it, so they go last."""
        for name in reversed(names):
            if name in self._kept:
                self._kept.move_to_end(name)

    def clear(self) -> None:
        """Let go of everything."""
        self._kept.clear()
        self._bytes = self.hits = self.misses = 0
