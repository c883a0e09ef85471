"""Documents to the shards of a token store, in bounded memory."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import uuid
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gptj.data.examples import Examples
from gptj.data.read import Document
from gptj.data.store import (
    CHECKED,
    MANIFEST,
    TOKENIZER,
    Manifest,
    ShardRecord,
    SourceRecord,
    dtype_for,
    ids_of,
)
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

SHARD_TOKENS = 1 << 29
"""Soon after so many, where a document ends, the next shard begins."""
_FLUSH_CHARACTERS = 1 << 20
_HELD_BYTES = 1 << 16


@dataclass(frozen=True)
class Written:
    """What a writer left: shards, and of which sources."""

    shards: tuple[ShardRecord, ...]
    sources: tuple[SourceRecord, ...]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Written:
        """What JSON says of it."""
        sources = (SourceRecord(**each) for each in values["sources"])
        return cls(tuple(map(ShardRecord.of, values["shards"])), tuple(sources))

    @property
    def documents(self) -> int:
        """In all of it."""
        return sum(shard.documents for shard in self.shards)


def finish(
    path: Path, tokenizer: Tokenizer, parts: Sequence[Written], examples: Examples | None = None
) -> None:
    """Make a store of what writers left in the folder `path`, in this order."""
    tokenizer.save(path / TOKENIZER)
    replace_text(path / MANIFEST, grown(None, tokenizer, parts, examples).to_json())


def grown(
    before: Manifest | None,
    tokenizer: Tokenizer,
    parts: Sequence[Written],
    examples: Examples | None = None,
) -> Manifest:
    """The manifest of a store after `parts` were written to its folder, in this order."""
    shards = [*before.shards] if before else []
    sources = [*before.sources] if before else []
    documents = before.documents if before else 0
    for part in parts:
        shards += part.shards
        for source in part.sources:
            first = source.first_document + documents
            sources.append(dataclasses.replace(source, first_document=first))
        documents += part.documents
    return Manifest.of(tokenizer, shards, sources, examples)


def replace_text(path: Path, text: str) -> None:
    """Write a file, of which nobody ever sees a part."""
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # two may write it at once
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


class StoreWriter:
    """Writes a store's shards, document by document.

    Use in a `with` block; leaving it without an exception completes them.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: Tokenizer,
        portion: int = 0,
        examples: Examples | None = None,
    ) -> None:
        """Write into the folder `path`, which may hold the shards of other portions.

        Args:
          examples: what the documents show, if they are not texts.
        """
        path.mkdir(parents=True, exist_ok=True)
        self._dtype = dtype_for(tokenizer, examples)
        self._path, self._tokenizer, self._portion = path, tokenizer, portion
        self._shard: _OpenShard | None = None
        self._shards: list[ShardRecord] = []
        self._sources: list[_OpenSource] = []
        self._pending: list[tuple[str | None, _OpenSource]] = []  # None ends a document
        self._pending_characters = 0
        self._begun: list[str] = []  # parts of a text that may not be cut

    def add(self, document: Document) -> None:
        """Append a document; those of one source are given one after the other.

        Raises:
          UserError: it holds tokens that are not the tokenizer's.
        """
        if not self._sources or self._sources[-1].name != document.source:
            self._sources.append(_OpenSource(document.source))
        if document.ids is not None:
            self._add_ids(document.source, document.ids)
            return
        self._sources[-1].add(document.text.encode(), document.continues)
        if document.continues and not self._tokenizer.cuttable:
            self._begun.append(document.text)
            return
        text = "".join([*self._begun, document.text])
        self._begun.clear()
        for piece in self._tokenizer.pieces(text):
            if self._pending_characters >= _FLUSH_CHARACTERS:
                self._flush()
            self._pending.append((piece, self._sources[-1]))
            self._pending_characters += len(piece)
        if not document.continues:
            self._pending.append((None, self._sources[-1]))

    def written(self) -> Written:
        """What is there after the `with` block."""
        records, first = [], 0
        for source in self._sources:
            records.append(source.record(first))
            first += source.documents
        return Written(tuple(self._shards), tuple(records))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
            self._end_shard()

    def _add_ids(self, source: str, ids: NDArray[np.int64]) -> None:
        own = ids_of(ids) if self._dtype.kind == "i" else ids
        if len(wrong := own[(own < 0) | (own >= self._tokenizer.vocab_size)]):
            raise UserError(
                f"{source} holds the token {wrong[0]}, and the tokenizer has "
                f"{self._tokenizer.vocab_size}: name the tokenizer that made it"
            )
        self._flush()
        self._sources[-1].add(self._tokenizer.spelled(own.tolist()), continues=False)
        self._sources[-1].tokens += len(ids) + 1
        self._append(np.append(ids, self._tokenizer.eos_id), [len(ids) + 1])

    def _flush(self) -> None:
        if not self._pending:
            return
        pieces = [piece for piece, _ in self._pending if piece]
        encoded = iter(self._tokenizer.encode_pieces(pieces))
        end, nothing = np.array([self._tokenizer.eos_id], np.uint32), np.array([], np.uint32)
        parts, ends, size = [nothing], [], 0
        for piece, source in self._pending:
            parts.append(end if piece is None else next(encoded) if piece else nothing)
            size += len(parts[-1])
            source.tokens += len(parts[-1])
            if piece is None:
                ends.append(size)
        self._append(np.concatenate(parts), ends)
        self._pending.clear()
        self._pending_characters = 0

    def _append(self, ids: NDArray[np.integer[Any]], ends: Sequence[int]) -> None:
        """Put more ids into the shard, in which documents end after so many of them."""
        if self._shard is None:
            name = f"{self._portion:05}-{len(self._shards):03}"
            self._shard = _OpenShard(self._path, name, self._dtype)
        self._shard.append(ids, ends)
        if self._shard.tokens >= SHARD_TOKENS and ends and ends[-1] == len(ids):
            self._end_shard()

    def _end_shard(self) -> None:
        if self._shard is not None:
            self._shards.append(self._shard.complete())
            self._shard = None


class _OpenShard:
    """A shard whose documents are still arriving."""

    def __init__(self, path: Path, name: str, dtype: np.dtype[np.integer[Any]]) -> None:
        self.tokens = 0
        self._path, self._name, self._dtype = path, name, dtype
        self._file = _Growing(path / f"{name}.tokens")
        self._offsets = array("q", [0])
        self._hash, self._hashed = hashlib.sha256(), 0
        self._checks: list[str] = []

    def append(self, ids: NDArray[np.integer[Any]], ends: Sequence[int]) -> None:
        self._offsets.extend(self.tokens + end for end in ends)
        data = memoryview(ids.astype(self._dtype).tobytes())
        self._file.write(data)
        self.tokens += len(ids)
        while len(data):
            part = data[: CHECKED - self._hashed]
            self._hash.update(part)
            self._hashed += len(part)
            data = data[len(part) :]
            if self._hashed == CHECKED:
                self._check()

    def _check(self) -> None:
        if self._hashed:
            self._checks.append(self._hash.hexdigest())
            self._hash, self._hashed = hashlib.sha256(), 0

    def complete(self) -> ShardRecord:
        self._check()
        self._file.close()
        offsets = np.array(self._offsets, "<i8").tobytes()
        (self._path / f"{self._name}.documents").write_bytes(offsets)
        check = hashlib.sha256(offsets).hexdigest()
        count = len(self._offsets) - 1
        return ShardRecord(self._name, self.tokens, count, tuple(self._checks), check)


class _Growing:
    """A file that is open only while it is written to: of many, a process may have few open."""

    def __init__(self, path: Path) -> None:
        self._path, self._held = path, bytearray()
        path.write_bytes(b"")

    def write(self, data: bytes | memoryview) -> None:
        """Append, if not now then later."""
        self._held += data
        if len(self._held) >= _HELD_BYTES:
            self.close()

    def close(self) -> None:
        """Append what is held."""
        with self._path.open("ab") as file:
            file.write(self._held)
        self._held.clear()


class _OpenSource:
    """A source whose documents are still arriving."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bytes = 0
        self.documents = 0
        self.tokens = 0
        self._hash = hashlib.sha256()

    def add(self, text: bytes, continues: bool) -> None:
        self._hash.update(text)
        self.bytes += len(text)
        self.documents += not continues

    def record(self, first_document: int) -> SourceRecord:
        return SourceRecord(
            self.name, self.bytes, self._hash.hexdigest(), first_document, self.documents,
            self.tokens,
        )  # fmt: skip
