"""A token store: a folder of documents as token ids, with their tokenizer and their provenance.

    tokens.bin      the ids, each document followed by end-of-text; little-endian uint16 or uint32
    documents.bin   where each document starts, and the end: documents + 1 little-endian int64
    tokenizer.json  what the ids mean
    manifest.json   sizes, hashes and sources of the above; written last

Nothing in it depends on when or where it was made: equal text gives an equal `fingerprint`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gptj.data.read import Document
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

FORMAT = 1
_TOKENS, _DOCUMENTS, _TOKENIZER, _MANIFEST = _FILES = (
    "tokens.bin",
    "documents.bin",
    "tokenizer.json",
    "manifest.json",
)
_FLUSH_CHARACTERS = 1 << 20
_AGAIN = "prepare the data again, or copy the whole folder again"


@dataclass(frozen=True)
class FileRecord:
    """What a file of the store must be."""

    bytes: int
    sha256: str


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
    files: dict[str, FileRecord]
    sources: tuple[SourceRecord, ...]

    def save(self, path: Path) -> None:
        """Write the manifest as JSON."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest; anything but what `save` writes raises `UserError`."""
        values = _json_object(path)
        if values.get("format") != FORMAT:
            raise UserError(
                f"{path} has format {values.get('format')}, this program reads {FORMAT}: "
                "prepare the data again"
            )
        try:
            values["files"] = {name: FileRecord(**file) for name, file in values["files"].items()}
            values["sources"] = tuple(SourceRecord(**source) for source in values["sources"])
            manifest = cls(**values)
            fingerprint = _fingerprint(manifest.files)
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is not a token store's manifest: {_AGAIN}") from error
        if manifest.fingerprint != fingerprint:
            raise UserError(f"{path} was altered, its fingerprint is not its files': {_AGAIN}")
        return manifest


@dataclass(frozen=True, eq=False)
class TokenStore:
    """An opened store; the arrays are mapped from disk, so opening is instant at any size."""

    path: Path
    manifest: Manifest
    tokens: NDArray[np.unsignedinteger[Any]]
    """All ids in order, end-of-text after each document."""
    documents: NDArray[np.int64]
    """Document i is tokens[documents[i] : documents[i + 1]], its end-of-text included."""

    @classmethod
    def open(cls, path: str | Path) -> TokenStore:
        """The store in the folder `path`. Sizes are checked here, contents by `verify`.

        Raises:
          UserError: there is no store, or a file is missing, cut short or altered.
        """
        path = Path(path)
        if not (path / _MANIFEST).is_file():
            raise UserError(f"no token store at {path}: {_remedy(path)}")
        manifest = Manifest.load(path / _MANIFEST)
        for name, file in manifest.files.items():
            size = (path / name).stat().st_size if (path / name).is_file() else None
            if size != file.bytes:
                state = "is missing" if size is None else f"has {size} bytes, not {file.bytes}"
                raise UserError(f"{path / name} {state}: {_AGAIN}")
        tokens = np.memmap(path / _TOKENS, manifest.dtype, mode="r")
        documents = np.memmap(path / _DOCUMENTS, "<i8", mode="r")
        return cls(path, manifest, tokens, documents)

    def __len__(self) -> int:
        """The number of tokens."""
        return self.manifest.tokens

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
        return Tokenizer.load(self.path / _TOKENIZER)

    def part(self, sources: Sequence[SourceRecord]) -> TokenStore:
        """The documents of some of its sources, which lie one after the other, as a store."""
        first, count = sources[0].first_document, sum(record.documents for record in sources)
        documents = self.documents[first : first + count + 1]
        tokens = self.tokens[documents[0] : documents[-1]]
        manifest = dataclasses.replace(
            self.manifest,
            tokens=len(tokens),
            documents=count,
            bytes=sum(record.bytes for record in sources),
            sources=tuple(sources),
        )
        return TokenStore(self.path, manifest, tokens, documents - documents[0])

    def text(self, document: int) -> str:
        """The text of one document, counted from 0.

        Raises:
          UserError: there are not that many documents.
        """
        if not 0 <= document < self.manifest.documents:
            raise UserError(
                f"no document {document} in {self.path}: "
                f"it holds documents 0 to {self.manifest.documents - 1}"
            )
        start, end = self.documents[document : document + 2]
        return self.tokenizer.decode(self.tokens[start:end].tolist())

    def verify(self) -> None:
        """Read every file and compare its hash.

        Raises:
          UserError: a file is not the one that was written.
        """
        for name, file in self.manifest.files.items():
            with (self.path / name).open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            if found != file.sha256:
                raise UserError(f"{self.path / name} was altered, its hash differs: {_AGAIN}")


class StoreWriter:
    """Writes a new store, document by document, in bounded memory.

    Use in a `with` block; leaving it without an exception completes the store.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        """Start a store in the new folder `path`."""
        path.mkdir()
        self._path = path
        self._tokenizer = tokenizer
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._file = (path / _TOKENS).open("wb")
        self._hash = hashlib.sha256()
        self._offsets = [0]
        self._length = 0
        self._sources: list[_OpenSource] = []
        self._pending: list[str | None] = []  # pieces of text; None ends a document
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
            self._pending.append(piece)
            self._pending_characters += len(piece)
            if self._pending_characters >= _FLUSH_CHARACTERS:
                self._flush()
        if not document.continues:
            self._pending.append(None)

    def _add_ids(self, source: str, ids: NDArray[np.int64]) -> None:
        if len(wrong := ids[(ids < 0) | (ids >= self._tokenizer.vocab_size)]):
            raise UserError(
                f"{source} holds the token {wrong[0]}, and the tokenizer has "
                f"{self._tokenizer.vocab_size}: name the tokenizer that made it"
            )
        self._flush()
        self._sources[-1].add(self._tokenizer.spelled(ids.tolist()), continues=False)
        self._append(np.append(ids, self._tokenizer.eos_id))
        self._offsets.append(self._length)

    def _append(self, ids: NDArray[np.int64]) -> None:
        data = ids.astype(self._dtype).tobytes()
        self._length += len(ids)
        self._hash.update(data)
        self._file.write(data)

    @property
    def documents(self) -> int:
        """Documents added so far."""
        return sum(source.documents for source in self._sources)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._complete()
        finally:
            with contextlib.suppress(OSError):  # a full disk, of which the first error told
                self._file.close()

    def _flush(self) -> None:
        pieces = [piece for piece in self._pending if piece is not None]
        encoded = iter(self._tokenizer.encode_batch(pieces))
        ids: list[int] = []
        for piece in self._pending:
            if piece is None:
                ids.append(self._tokenizer.eos_id)
                self._offsets.append(self._length + len(ids))
            else:
                ids += next(encoded)
        self._append(np.array(ids, np.int64))
        self._pending.clear()
        self._pending_characters = 0

    def _complete(self) -> None:
        self._flush()
        self._file.close()
        offsets = np.array(self._offsets, "<i8").tobytes()
        (self._path / _DOCUMENTS).write_bytes(offsets)
        self._tokenizer.save(self._path / _TOKENIZER)
        files = {
            _TOKENS: FileRecord(self._length * self._dtype.itemsize, self._hash.hexdigest()),
            _DOCUMENTS: FileRecord(len(offsets), hashlib.sha256(offsets).hexdigest()),
            _TOKENIZER: FileRecord(len(self._tokenizer.to_json().encode()), self._tokenizer.sha256),
        }
        manifest = Manifest(
            format=FORMAT,
            dtype=self._dtype.str,
            vocab_size=self._tokenizer.vocab_size,
            tokens=self._length,
            documents=self.documents,
            bytes=sum(source.bytes for source in self._sources),
            fingerprint=_fingerprint(files),
            files=files,
            sources=self._source_records(),
        )
        manifest.save(self._path / _MANIFEST)

    def _source_records(self) -> tuple[SourceRecord, ...]:
        records, first = [], 0
        for source in self._sources:
            end = first + source.documents
            tokens = self._offsets[end] - self._offsets[first]
            records.append(source.record(first, tokens))
            first = end
        return tuple(records)


class _OpenSource:
    """A source whose documents are still arriving."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bytes = 0
        self.documents = 0
        self._hash = hashlib.sha256()

    def add(self, text: bytes, continues: bool) -> None:
        self._hash.update(text)
        self.bytes += len(text)
        self.documents += not continues

    def record(self, first_document: int, tokens: int) -> SourceRecord:
        return SourceRecord(
            self.name, self.bytes, self._hash.hexdigest(), first_document, self.documents, tokens
        )


def _json_object(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a JSON object: {_AGAIN}") from error


def _fingerprint(files: dict[str, FileRecord]) -> str:
    hashes = "".join(files[name].sha256 for name in (_TOKENS, _DOCUMENTS, _TOKENIZER))
    return hashlib.sha256(hashes.encode()).hexdigest()


def _remedy(path: Path) -> str:
    parts = sorted(part.parent.name for part in path.glob(f"*/{_MANIFEST}"))
    if parts:
        return "open " + " or ".join(str(path / part) for part in parts)
    return "name the train or heldout folder of prepared data, or prepare some"
