"""Which text is kept from training to measure the loss on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from gptj.data.read import Document, Key

Unit = Literal["nothing", "file", "document", "tail"]
"""What is held out whole."""

ENOUGH = 20
"""Files or documents of which whole ones are held out."""
MANY = 200_000
"""Documents above which each is held out by its own digest, without those of others at hand."""
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Split:
    """Which text is held out: `held` names the files, or the digests of the documents."""

    unit: Unit
    fraction: float
    seed: int
    held: frozenset[str] | None = frozenset()
    """`None` where there are so many documents that a digest's value alone decides."""
    long: Mapping[Key, tuple[str, int]] = field(default_factory=dict)
    """Digest and characters of documents that come in parts, by their keys."""

    def begin(self) -> Division:
        """What divides the documents of some files, each in the order in which it was planned."""
        return Division(self)


class Division:
    """Divides the documents of a split, one after the other."""

    def __init__(self, split: Split) -> None:
        self._split, self._begun = split, 0

    def __call__(self, document: Document) -> Iterator[tuple[bool, Document]]:
        """The document, or what it is cut into, and of each whether it is held out."""
        split = self._split
        digest, length = split.long.get(document.key) or (None, len(document.text))
        begun = self._begun
        self._begun = begun + len(document.text) if document.continues else 0
        if split.unit == "tail":
            return self._cut(document, begun, length)
        return iter([(self._is_held(document, digest), document)])

    def _is_held(self, document: Document, digest: str | None) -> bool:
        split = self._split
        if split.unit == "nothing":
            return False
        if split.unit == "file":
            return split.held is not None and document.source in split.held
        digest = digest or digest_of(document.content, split.seed)
        if split.held is None:
            return int(digest, 16) < split.fraction * 256**_DIGEST_BYTES
        return digest in split.held

    def _cut(self, document: Document, begun: int, length: int) -> Iterator[tuple[bool, Document]]:
        """The head of a document to train on, and its tail; `begun` characters came before."""
        fraction = self._split.fraction
        if document.ids is not None:
            cut = len(document.ids) - round(len(document.ids) * fraction)
            sides = (False, document.ids[:cut]), (True, document.ids[cut:])
            for held, ids in sides:
                if len(ids):
                    yield held, dataclasses.replace(document, ids=ids)
            return
        text, tail = document.text, round(length * fraction)
        cut = length - tail - begun
        # A line's start near the cut reads better, but the share matters more.
        if 0 < cut <= len(text):
            cut = text.rfind("\n", max(0, cut - tail // 2), cut) + 1 or cut
        cut = min(max(cut, 0), len(text))
        if text[:cut]:
            is_past = cut < len(text) or begun + cut >= length - tail
            continues = document.continues and not is_past
            yield False, dataclasses.replace(document, text=text[:cut], continues=continues)
        if text[cut:]:
            yield True, dataclasses.replace(document, text=text[cut:])


class SplitPlan:
    """Decides what to hold out: about `fraction` of the bytes, in the largest units there are.

    The choice depends on nothing but the texts and the seed. Files, or documents, with the same
    text count as one unit, so that what is held out is never trained on under another name.
    """

    def __init__(self, fraction: float, seed: int, is_whole: bool = False) -> None:
        """`is_whole`: no document is ever cut, however few there are."""
        self._fraction, self._seed, self._is_whole = fraction, seed, is_whole
        self._texts: Counter[str] | None = Counter()  # bytes of each distinct document, by digest
        self._sizes: Counter[str] = Counter()  # bytes of each file, by its name
        self._files: defaultdict[str, str] = defaultdict(str)  # digest of each file, by its name
        self._long: dict[Key, tuple[str, int]] = {}
        self._begin()

    def _begin(self) -> None:
        self._hash = hashlib.sha256(f"{self._seed}:".encode())
        self._bytes = self._characters = self._parts = 0

    def add(self, document: Document) -> None:
        """See another one."""
        if not self._fraction:
            return
        self._hash.update(document.content)
        self._bytes += len(document.content)
        self._characters += len(document.text)
        self._parts += 1
        if document.continues:
            return
        digest, name = self._hash.hexdigest()[: 2 * _DIGEST_BYTES], document.source
        if self._parts > 1:
            self._long[document.key] = digest, self._characters
        if self._texts is not None:
            self._texts[digest] += self._bytes
            if len(self._texts) > MANY:
                self._texts = None
        self._sizes[name] += self._bytes
        self._files[name] = digest_of((self._files[name] + digest).encode(), self._seed)
        self._begin()

    def decide(self) -> Split:
        """What is held out."""
        fraction, seed = self._fraction, self._seed
        if not fraction:
            return Split("nothing", fraction, seed)
        files: Counter[str] = Counter()
        for name, digest in self._files.items():
            files[digest] += self._sizes[name]
        if len(files) >= ENOUGH:
            chosen = _choose(files, fraction)
            names = frozenset(name for name, digest in self._files.items() if digest in chosen)
            return Split("file", fraction, seed, names, self._long)
        if self._texts is None:
            return Split("document", fraction, seed, None, self._long)
        if len(self._texts) >= ENOUGH or self._is_whole:
            return Split("document", fraction, seed, _choose(self._texts, fraction), self._long)
        return Split("tail", fraction, seed, long=self._long)


def digest_of(content: bytes, seed: int) -> str:
    """What tells a text from others, and orders them anew for each seed."""
    return hashlib.sha256(f"{seed}:".encode() + content).hexdigest()[: 2 * _DIGEST_BYTES]


def _choose(sizes: Mapping[str, int], fraction: float) -> frozenset[str]:
    """Units in the order of their digests, each taken if that brings the sum nearer its target."""
    target = fraction * sum(sizes.values())
    held, total = set(), 0
    for digest, size in sorted(sizes.items()):
        if total + size / 2 < target:
            held.add(digest)
            total += size
    smallest = min(sizes, key=lambda digest: (sizes[digest], digest))
    return frozenset(held or {smallest})
