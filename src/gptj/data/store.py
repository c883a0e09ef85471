"""A token store: a folder of documents as token ids, with their tokenizer and their provenance.

    00000-000.tokens     ids, each document followed by end-of-text; little-endian uint16 or uint32;
                         of examples int32, those that are only read as their complement
    00000-000.documents  where each document starts in it, and the end: little-endian int64
    00000-001.tokens     ... the next shard; no document lies in two
    tokenizer.json       what the ids mean
    manifest.json        sizes, hashes and sources of the above; written last

Nothing in it depends on when or where it was made: equal input gives an equal `fingerprint`. It is
read in place, also from behind a URL: of a store of any size no more than what is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptj.data.examples import Examples
from gptj.data.joined import Joined, Run
from gptj.data.journal import pending
from gptj.errors import UserError
from gptj.files import File, Folder
from gptj.tokenizer import Tokenizer

FORMAT = 2
CHECKED = 1 << 24
"""Bytes of a shard's tokens of which each hash is: what is damaged is named this exactly."""
TOKENIZER, MANIFEST = "tokenizer.json", "manifest.json"
_AGAIN = "prepare the data again, or copy the whole folder again"
_Text = str | bytes  # which in-class annotations cannot say: a manifest has `bytes` of its own


@dataclass(frozen=True)
class ShardRecord:
    """What one shard must hold."""

    name: str
    tokens: int
    documents: int
    checks: tuple[str, ...]
    """SHA-256 of each `CHECKED` bytes of its tokens."""
    documents_check: str
    """SHA-256 of where its documents start."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ShardRecord:
        """What JSON says of it."""
        return cls(**{**values, "checks": tuple(values["checks"])})

    def files(self, dtype: str) -> dict[str, int]:
        """Its files, and how many bytes each has."""
        width = np.dtype(dtype).itemsize
        return {
            f"{self.name}.tokens": self.tokens * width,
            f"{self.name}.documents": (self.documents + 1) * 8,
        }


@dataclass(frozen=True)
class SourceRecord:
    """What one input file gave to the store; `sha256` is of that text, documents joined."""

    name: str
    bytes: int
    sha256: str
    first_document: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`. Counts include the end-of-text tokens, except `bytes`, the text's own."""

    format: int
    dtype: str
    vocab_size: int
    tokens: int
    documents: int
    bytes: int
    fingerprint: str
    tokenizer: str
    """SHA-256 of the tokenizer's file."""
    shards: tuple[ShardRecord, ...]
    sources: tuple[SourceRecord, ...]
    examples: Examples | None = None
    """What the documents show, if they are not texts."""

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        shards: Sequence[ShardRecord],
        sources: Sequence[SourceRecord],
        examples: Examples | None = None,
    ) -> Manifest:
        """Of a store of these shards."""
        return cls(
            format=FORMAT,
            dtype=dtype_for(tokenizer, examples).str,
            vocab_size=tokenizer.vocab_size,
            tokens=sum(shard.tokens for shard in shards),
            documents=sum(shard.documents for shard in shards),
            bytes=sum(source.bytes for source in sources),
            fingerprint=_fingerprint(tokenizer.sha256, shards),
            tokenizer=tokenizer.sha256,
            shards=tuple(shards),
            sources=tuple(sources),
            examples=examples,
        )

    def to_json(self) -> str:
        """The manifest as its file says it."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: str, text: _Text) -> Manifest:
        """What the file `path` says; anything but what `to_json` does raises `UserError`."""
        values = _json_object(path, text)
        if values.get("format") != FORMAT:
            raise UserError(
                f"{path} has format {values.get('format')}, this program reads {FORMAT}: "
                "prepare the data again"
            )
        try:
            values["shards"] = tuple(map(ShardRecord.of, values["shards"]))
            values["sources"] = tuple(SourceRecord(**source) for source in values["sources"])
            manifest = cls(**values)
            fingerprint = _fingerprint(manifest.tokenizer, manifest.shards)
            adds_up = manifest.adds_up
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is not a token store's manifest: {_AGAIN}") from error
        if manifest.fingerprint != fingerprint:
            raise UserError(f"{path} was altered, its fingerprint is not its shards': {_AGAIN}")
        if not adds_up:
            raise UserError(f"{path} was altered, its counts are not its shards': {_AGAIN}")
        return manifest

    @property
    def adds_up(self) -> bool:
        """Whether its counts are those of its shards and of its sources, in their order."""
        begins = itertools.accumulate((each.documents for each in self.sources), initial=0)
        return (
            self.dtype == _dtype(self.vocab_size, self.examples).str
            and self.bytes == sum(each.bytes for each in self.sources)
            and all(a.first_document == b for a, b in zip(self.sources, begins, strict=False))
            and all(
                self.tokens == sum(each.tokens for each in parts)
                and self.documents == sum(each.documents for each in parts)
                for parts in (self.shards, self.sources)
            )
        )


@dataclass(frozen=True, eq=False)
class TokenStore:
    """An opened store, or a part of one; opening is instant at any size."""

    folder: Folder
    manifest: Manifest
    tokens: Joined
    """All ids in order, end-of-text after each document; see `ids_of`."""
    starts: Joined
    """Where each document starts."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TokenStore:
        """The store in the folder `path`, which may be a URL.

        Sizes are checked here, contents by `verify`.

        Raises:
          UserError: there is no store, or a file is missing, cut short or altered.
        """
        folder = Folder(path)
        decided = pending(folder)
        if decided is None and MANIFEST not in folder:
            raise UserError(f"no token store at {path}: {_remedy(folder)}")
        text = decided or folder.file(MANIFEST).read().tobytes()
        manifest, listed = Manifest.load(f"{folder}/{MANIFEST}", text), _listed(folder)
        _whole(folder, listed, TOKENIZER)
        tokens: list[Run] = []
        starts: list[Joined] = []
        begin = 0
        for shard in manifest.shards:
            ids, offsets = (
                _whole(folder, listed, name, size)
                for name, size in shard.files(manifest.dtype).items()
            )
            tokens.append(Run(ids, np.dtype(manifest.dtype), shard.tokens))
            starts.append(Joined([Run(offsets, np.dtype("<i8"), shard.documents)], plus=begin))
            begin += shard.tokens
        return cls(folder, manifest, Joined(tokens), Joined(starts))

    @classmethod
    def chained(cls, stores: Mapping[str, TokenStore]) -> TokenStore:
        """Stores of one tokenizer, one after the other, each one's sources in a folder of its name.

        It is only read: it has no files of its own to verify.
        """
        first = next(iter(stores.values()))
        sources: list[SourceRecord] = []
        starts: list[Joined] = []
        tokens = documents = 0
        for name, store in stores.items():
            for each in store.sources:
                begin = each.first_document + documents
                path = f"{name}/{each.name}"
                sources.append(dataclasses.replace(each, name=path, first_document=begin))
            starts.append(Joined([store.starts], plus=tokens))
            tokens += len(store)
            documents += store.manifest.documents
        fingerprints = "".join(store.fingerprint for store in stores.values())
        manifest = dataclasses.replace(
            first.manifest,
            tokens=tokens,
            documents=documents,
            bytes=sum(store.bytes for store in stores.values()),
            fingerprint=hashlib.sha256(fingerprints.encode()).hexdigest(),
            sources=tuple(sources),
        )
        ids = Joined([store.tokens for store in stores.values()])
        return cls(first.folder, manifest, ids, Joined(starts))

    def __len__(self) -> int:
        """The number of tokens."""
        return self.manifest.tokens

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def fingerprint(self) -> str:
        """SHA-256 that tells this store's tokens, documents and tokenizer from any other's."""
        return self.manifest.fingerprint

    @property
    def sources(self) -> tuple[SourceRecord, ...]:
        """Where the documents came from, in order."""
        return self.manifest.sources

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all the text, the denominator of bits per byte."""
        return self.manifest.bytes

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        file = self.folder.file(TOKENIZER)
        found = Tokenizer(_json_object(file.path, file.read().tobytes()), file.path)
        if found.vocab_size != self.manifest.vocab_size:
            raise UserError(f"{file.path} is not the tokenizer of the ids beside it: {_AGAIN}")
        return found

    def part(self, sources: Sequence[SourceRecord]) -> TokenStore:
        """The documents of some of its sources, which lie one after the other, as a store."""
        first, count = sources[0].first_document, sum(record.documents for record in sources)
        start, size = self.extent(first)[0], sum(record.tokens for record in sources)
        manifest = dataclasses.replace(
            self.manifest,
            tokens=size,
            documents=count,
            bytes=sum(record.bytes for record in sources),
            sources=tuple(
                dataclasses.replace(each, first_document=each.first_document - first)
                for each in sources
            ),
        )
        starts = self.starts.view(first, first + count, plus=-start)
        return TokenStore(self.folder, manifest, self.tokens.view(start, start + size), starts)

    def extent(self, document: int) -> tuple[int, int]:
        """Where a document starts and ends, its end-of-text included."""
        bounds = self.starts[document : document + 2].tolist()
        return bounds[0], bounds[1] if len(bounds) == 2 else len(self)

    def document_at(self, token: int) -> int:
        """The document in which a token lies."""
        low, high = 0, self.manifest.documents
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.starts[middle] <= token else (low, middle)
        return low

    def text(self, document: int) -> str:
        """The text of one document, counted from 0.

        Raises:
          UserError: there are not that many documents.
        """
        if not 0 <= document < self.manifest.documents:
            raise UserError(
                f"no document {document} in {self}: "
                f"it holds documents 0 to {self.manifest.documents - 1}"
            )
        start, end = self.extent(document)
        return self.tokenizer.decode(ids_of(self.tokens[start:end]).tolist())

    def verify(self) -> None:
        """Read every file and compare its hashes.

        Raises:
          UserError: a file is not the one that was written; of tokens also which part of them.
        """
        if _hash(self.folder.file(TOKENIZER).read()) != self.manifest.tokenizer:
            raise UserError(f"{self}/{TOKENIZER} was altered, its hash differs: {_AGAIN}")
        for shard in self.manifest.shards:
            ids, offsets = map(self.folder.file, shard.files(self.manifest.dtype))
            for number, (check, data) in enumerate(zip(shard.checks, _checked(ids), strict=True)):
                if _hash(data) != check:
                    raise UserError(
                        f"{ids.path} was altered between bytes {number * CHECKED} and "
                        f"{number * CHECKED + len(data)}: {_AGAIN}"
                    )
            if _hash(offsets.read()) != shard.documents_check:
                raise UserError(f"{offsets.path} was altered, its hash differs: {_AGAIN}")


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether there is a token store in a folder."""
    folder = Folder(path)
    return MANIFEST in folder and TOKENIZER in folder


def ids_of(tokens: NDArray[Any]) -> NDArray[Any]:
    """The ids that stored tokens are, also of those that are only read."""
    return np.where(tokens < 0, ~tokens, tokens) if tokens.dtype.kind == "i" else tokens


def dtype_for(tokenizer: Tokenizer, examples: Examples | None = None) -> np.dtype[np.integer[Any]]:
    """How ids are stored."""
    return _dtype(tokenizer.vocab_size, examples)


def _dtype(vocab_size: int, examples: Examples | None) -> np.dtype[np.integer[Any]]:
    if examples:
        return np.dtype("<i4")
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _hash(data: NDArray[np.uint8]) -> str:
    return hashlib.sha256(data.data).hexdigest()


def _checked(file: File) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, file.size, CHECKED):
        yield file.read(start, min(file.size, start + CHECKED))


def _listed(folder: Folder) -> dict[str, File]:
    """The files of a folder, asked for at once: one by one, a thousand would take minutes."""
    with contextlib.suppress(UserError):  # plain HTTP need not say what there is
        return {name: file for name, file in folder.walk() if file is not None}
    return {}


def _whole(folder: Folder, listed: Mapping[str, File], name: str, size: int | None = None) -> File:
    """A file of the store, of that size."""
    path = f"{folder}/{name}"
    if name not in listed and name not in folder:
        raise UserError(f"{path} is missing: {_AGAIN}")
    file = listed[name] if name in listed else folder.file(name)
    if size is not None and file.size != size:
        raise UserError(f"{path} has {file.size} bytes, not {size}: {_AGAIN}")
    return file


def _json_object(path: str, text: _Text) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON object: {_AGAIN}") from error


def _fingerprint(tokenizer: str, shards: Sequence[ShardRecord]) -> str:
    hashes = [tokenizer]
    for shard in shards:
        hashes += [*shard.checks, shard.documents_check]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _remedy(folder: Folder) -> str:
    parts = [name for name in folder.names() if f"{name}/{MANIFEST}" in folder]
    if parts:
        return "open " + " or ".join(f"{folder}/{part}" for part in parts)
    return "name the train or heldout folder of prepared data, or prepare some"
