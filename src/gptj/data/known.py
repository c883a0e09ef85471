"""Which documents of new text are in prepared data already, to measure on or to train on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptj.data.clean import Drops, beginning
from gptj.data.read import Document, Key, joined
from gptj.data.split import Split
from gptj.data.store import TokenStore, ids_of
from gptj.tokenizer import Tokenizer

_DIGEST_BYTES = 16
_TOKENS, _DOCUMENTS = 1 << 20, 1 << 16
"""Of a store so many are read at a time."""


def leave_out_held(
    documents: Iterable[Document], stores: Mapping[Path, TokenStore], drops: Drops
) -> None:
    """Note which documents are held out in `stores` already, whole or in part.

    All held-out text is read for that, and 16 bytes of each of its documents are kept.
    """
    held = {path: store for path, store in stores.items() if path.name == "heldout"}
    if not held:
        return
    tokenizer = next(iter(held.values())).tokenizer
    spelling, known = _Spelling(tokenizer), set[bytes]()
    for path, store in held.items():
        known.update(_stored([store], spelling), _rejoined(path, stores, spelling))
    first, size = None, 0
    for document, digest in _digests(documents, tokenizer):
        first = first or document
        size += len(document.content)
        if digest in known:
            drops.keys.add(document.key)
            drops.note(document.key, "held out before", size, beginning(first, tokenizer))
        if digest:
            first, size = None, 0


def leave_out_trained(
    documents: Iterable[Document],
    splits: Mapping[str, Split],
    stores: Mapping[Path, TokenStore],
    drops: Drops,
) -> None:
    """Note which documents that `splits` hold out, whole or in part, are trained on in `stores`.

    Of these only documents are read that have as many tokens as one of those.
    """
    tokenizer = next(iter(stores.values())).tokenizer
    chosen = _Chosen(splits, tokenizer)
    for document in documents if tokenizer.cuttable else joined(documents):
        chosen.read(document)
    found: set[bytes] = set()
    for path, store in stores.items():
        if path.name == "train" and chosen.sizes:
            found |= chosen.among(store)
    for key, size, begins in sorted(each for at in found for each in chosen.documents[at]):
        drops.keys.add(key)
        drops.note(key, "to be held out, and trained on before", size, begins)


def all_there(documents: Iterable[Document], stores: Mapping[Path, TokenStore]) -> bool:
    """Whether each of the documents, of one source, lies in `stores` under that source's name."""
    tokenizer = next(iter(stores.values())).tokenizer
    spelling, known = _Spelling(tokenizer), set[bytes]()
    own: set[bytes] = set()
    name = ""
    for document, digest in _digests(documents, tokenizer):
        name = document.source
        own |= {digest} if digest else set()
    for path, store in stores.items():
        for source in store.sources:
            if source.name == name and source.documents:
                known.update(_stored([store.part([source])], spelling))
        if path.name == "heldout":
            known.update(_rejoined(path, stores, spelling, name))
    return own <= known


def _rejoined(
    held: Path, stores: Mapping[Path, TokenStore], spelling: _Spelling, name: str | None = None
) -> Iterator[bytes]:
    """The digests of documents whose ends, and no more, may be held out: of one source, or all.

    Those are of sources of which as many documents are trained on.
    """
    train = stores.get(held.with_name("train"))
    heads = {source.name: source for source in train.sources} if train else {}
    for source in stores[held].sources:
        head = heads.get(source.name)
        if train and head and head.documents == source.documents and name in (None, source.name):
            yield from _stored([train.part([head]), stores[held].part([source])], spelling)


class _Chosen:
    """Documents that are to be held out, by their tokens."""

    def __init__(self, splits: Mapping[str, Split], tokenizer: Tokenizer) -> None:
        self.documents: dict[bytes, list[tuple[Key, int, str]]] = {}
        self.sizes: set[int] = set()
        self._divisions = {name: split.begin() for name, split in splits.items()}
        self._tails = {name for name, split in splits.items() if split.unit == "tail"}
        self._tokenizer = tokenizer
        self._begin()

    def _begin(self) -> None:
        self._hash, self._tokens, self._bytes, self._begins = hashlib.sha256(), 0, 0, ""

    def read(self, document: Document) -> None:
        """See another one, or a part of one."""
        sides = [held for held, _ in self._divisions[document.group](document)]
        if document.group not in self._tails and not any(sides):
            return
        ids = document.ids
        if ids is None:
            encoded = self._tokenizer.encode_pieces(list(self._tokenizer.pieces(document.text)))
            ids = np.concatenate([np.empty(0, np.int64), *encoded])
        self._hash.update(ids.astype("<u4").tobytes())
        self._tokens += len(ids)
        self._bytes += len(document.content)
        self._begins = self._begins or beginning(document, self._tokenizer)
        if not document.continues:
            digest = self._hash.digest()[:_DIGEST_BYTES]
            about = document.key, self._bytes, self._begins
            self.documents.setdefault(digest, []).append(about)
            self.sizes.add(self._tokens)
            self._begin()

    def among(self, store: TokenStore) -> set[bytes]:
        """The digests of those that are in a store."""
        sizes, found = np.array(sorted(self.sizes)), set()
        for begin, end in _extents(store, sizes):
            hashed = hashlib.sha256()
            for at in range(begin, end, _TOKENS):
                hashed.update(store.tokens[at : min(end, at + _TOKENS)].astype("<u4").tobytes())
            found.add(hashed.digest()[:_DIGEST_BYTES])
        return found & self.documents.keys()


def _digests(
    documents: Iterable[Document], tokenizer: Tokenizer
) -> Iterator[tuple[Document, bytes]]:
    """Documents, and of each, or the last of its parts, the digest of what its tokens stand for."""
    hashed = hashlib.sha256()
    for document in documents if tokenizer.cuttable else joined(documents):
        ids = document.ids
        if ids is None and tokenizer.cuttable:
            hashed.update(document.content)
        else:
            encoded = tokenizer.encode(document.text) if ids is None else ids_of(ids).tolist()
            hashed.update(tokenizer.spelled(encoded))
        yield document, b"" if document.continues else hashed.digest()[:_DIGEST_BYTES]
        if not document.continues:
            hashed = hashlib.sha256()


def _stored(parts: Sequence[TokenStore], spelling: _Spelling) -> Iterator[bytes]:
    """The digest of each document that stores hold, each of them a part of it."""
    for extents in zip(*map(_extents, parts), strict=True):
        hashed = hashlib.sha256()
        for store, (begin, end) in zip(parts, extents, strict=True):
            step = _TOKENS if spelling.is_even else max(1, end - begin)
            for at in range(begin, end, step):
                hashed.update(spelling(ids_of(store.tokens[at : min(end, at + step)])))
        yield hashed.digest()[:_DIGEST_BYTES]


class _Spelling:
    """`Tokenizer.spelled` of many ids at once, where none of it depends on its place."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.is_even = tokenizer, tokenizer.cuttable
        spelling = tokenizer.spelling
        self._sizes = np.array(list(map(len, spelling)))
        self._begins = np.cumsum(self._sizes) - self._sizes
        self._bytes = np.frombuffer(b"".join(spelling), np.uint8)

    def __call__(self, ids: NDArray[np.integer[Any]]) -> bytes:
        if not self.is_even:
            return self._tokenizer.spelled(ids.tolist())
        sizes = self._sizes.take(ids, mode="clip")
        before = np.cumsum(sizes) - sizes
        places = np.repeat(self._begins.take(ids, mode="clip") - before, sizes)
        return self._bytes[places + np.arange(len(places))].tobytes()


def _extents(
    store: TokenStore, sizes: NDArray[np.int64] | None = None
) -> Iterator[tuple[int, int]]:
    """Where each document begins, and its end-of-text; of all, or of those of so many tokens."""
    count = store.manifest.documents
    for first in range(0, count, _DOCUMENTS):
        last = min(count, first + _DOCUMENTS)
        starts = np.append(store.starts[first : last + 1], [len(store)] if last == count else [])
        begins, ends = starts[:-1].astype(np.int64), starts[1:].astype(np.int64) - 1
        if sizes is not None:
            wanted = np.isin(ends - begins, sizes)
            begins, ends = begins[wanted], ends[wanted]
        yield from zip(begins.tolist(), ends.tolist(), strict=True)
