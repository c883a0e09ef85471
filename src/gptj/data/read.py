"""Files to documents, one at a time: text, JSON lines, tables, archives of them."""

from __future__ import annotations

import codecs
import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gptj.data.archive import members
from gptj.data.examples import ExampleReader, lacking, looked_up
from gptj.data.find import HIDDEN, KINDS, LINES, TABLES, TOKENS, Source, is_packed, kind_of
from gptj.data.tokenized import Ids, documents_of, token_runs
from gptj.data.unpack import reading, unpacked, unpacked_as
from gptj.errors import UserError
from gptj.files import File
from gptj.tokenizer import WORD_END

PART_CHARACTERS = 1 << 24
"""Of a text longer than this so much is held at a time, and what reaches to the next word's end."""
TEXT = "text"
"""The field that is read unless another is named."""
_SURROGATES = re.compile("[\ud800-\udfff]")


Key = tuple[str, int]
"""A document: its source, and its number in it."""


@dataclass(frozen=True, eq=False)
class Document:
    """A text that stands by itself, from the source called `source`."""

    source: str
    text: str = ""
    group: str = ""
    """What the field says that the data are to be divided by."""
    continues: bool = False
    """Whether the next one is more of the same text, which is too long to be held."""
    ids: Ids | None = None
    """Its tokens, where a file holds those instead of a text."""
    number: int = 0
    """Its place among those of its source, as they are mended and before any is left out."""

    @cached_property
    def content(self) -> bytes:
        """What it says, as bytes."""
        return self.text.encode() if self.ids is None else self.ids.astype("<u4").tobytes()

    @property
    def key(self) -> Key:
        """What tells it from every other."""
        return self.source, self.number


class Reader:
    """Reads sources, and counts what it has to mend."""

    def __init__(
        self,
        text_field: str = TEXT,
        group_field: str | None = None,
        strict: bool = False,
        eos_id: int | None = None,
        exclude: Sequence[str] = (),
        examples: ExampleReader | None = None,
    ) -> None:
        """Of a record its `text_field` is read; a dot leads into a record within.

        Args:
          group_field: what `Document.group` is taken from.
          strict: refuse what is not UTF-8, where else each piece of it becomes U+FFFD.
          eos_id: the end of a document in files of tokens; without it, these are refused.
          exclude: patterns of names that are passed over in archives.
          examples: makes tokens of records instead; then nothing but records is read.
        """
        self._text_field, self._group_field, self._strict = text_field, group_field, strict
        self._eos_id, self._exclude, self._examples = eos_id, exclude, examples
        self.replaced = 0
        """Characters put for what was none."""
        self.skipped = 0
        """Files in archives of no known kind, or empty, and links."""

    def documents(self, source: Source) -> Iterator[Document]:
        """The documents of one file: each record's text, else the whole file.

        A document without a character is left out.

        Raises:
          UserError: the file is empty, binary, corrupt, or a record is not what it should be.
        """
        path, empty = source.file.path, True
        if source.kind in TABLES | TOKENS and is_packed(path):
            raise UserError(f"{path} is read where it lies, and so not compressed: unpack it")
        for document in self._tokens(source) if source.kind in TOKENS else self._texts(source):
            if document.text or document.ids is not None:
                empty = False
                yield document
        if empty:
            raise UserError(f"{path} is empty: leave it out, or give a file with text")

    def _tokens(self, source: Source) -> Iterator[Document]:
        path = source.file.path
        if self._eos_id is None:
            raise UserError(
                f"{path} holds tokens and not what they mean: name their tokenizer with "
                "--tokenizer, of the original's files gpt2"
            )
        self._check_kind(path)
        for runs in token_runs(source.file, source.kind):
            for ids in documents_of(runs, self._eos_id):
                if len(ids):
                    yield Document(source.name, ids=ids)

    def _texts(self, source: Source) -> Iterator[Document]:
        for piece in self._pieces(source.file):
            yield dataclasses.replace(piece, source=source.name)

    def _check_kind(self, path: str) -> None:
        self._check_group(path)
        if self._examples:
            raise UserError(
                f"{path} holds no records: give examples as JSON lines or tables, or leave out "
                "--examples"
            )

    def _check_group(self, path: str) -> None:
        if self._group_field:
            raise UserError(
                f"{path} has no field {self._group_field!r} to divide it by: leave out --split-by, "
                "or give JSON lines or tables"
            )

    def _pieces(self, file: File) -> Iterator[Document]:
        kind = kind_of(file.path)
        if kind in TABLES:
            from gptj.data.tables import records

            lack = "name its fields as --examples needs them" if self._examples else ""
            lack = lack or "name the field with --text-field"
            for where, record in records(file, kind, self._fields, lack):
                yield self._read(where, record)
        elif kind == ".tar":
            yield from self._archived(file)
        else:
            yield from self._streamed(file.path, kind, unpacked(file))

    @property
    def _fields(self) -> list[str]:
        read = self._examples.fields if self._examples else [self._text_field]
        fields = [*read, *([self._group_field] if self._group_field else [])]
        return [name for field in fields for name in (field, field.partition(".")[0])]

    def _streamed(self, where: str, kind: str, chunks: Iterable[bytes]) -> Iterator[Document]:
        if kind in LINES:
            for place, record in self._json_lines(where, chunks):
                yield self._read(place, record)
        else:
            self._check_kind(where)
            for text, continues in self._plain(where, chunks):
                yield Document("", text, "", continues)

    def _archived(self, file: File) -> Iterator[Document]:
        """Of the files in an archive those that could be read in a folder."""
        but = (HIDDEN, *self._exclude)
        with reading(file), members(file.path, unpacked(file), but) as found:
            for name, held in found:
                kind, where = kind_of(name), f"{file.path}/{name}"
                if kind in TABLES | TOKENS | {".tar"}:
                    raise UserError(
                        f"{where} can be read beside the archive and not within: unpack it, or "
                        f"leave it out with --exclude '*{kind}*'"
                    )
                if held is None or kind not in KINDS:
                    self.skipped += 1
                else:
                    yield from self._streamed(where, kind, unpacked_as(where, held))

    def _plain(self, where: str, chunks: Iterable[bytes]) -> Iterator[tuple[str, bool]]:
        """A text in parts cut between words, and of each whether there is more."""
        text = ""
        for piece in self._utf8(where, chunks):
            text += piece
            if len(text) > PART_CHARACTERS and (cut := _last_cut(text)):
                yield text[:cut], True
                text = text[cut:]
        yield text, False

    def _utf8(self, where: str, chunks: Iterable[bytes]) -> Iterator[str]:
        """Chunks of a file as text, without a byte order mark.

        Raises:
          UserError: it is binary, or strict and not UTF-8.
        """
        rest, before = b"", 0
        for chunk in itertools.chain(chunks, (None,)):
            data = rest + (chunk or b"")
            if b"\0" in data:
                raise UserError(
                    f"{where} is binary, it holds NUL bytes: leave it out or convert it to text"
                )
            text, read = self._decoded(where, data, before, final=chunk is None)
            yield text if before else text.removeprefix("\ufeff")
            rest, before = data[read:], before + read

    def _decoded(self, where: str, data: bytes, before: int, final: bool) -> tuple[str, int]:
        try:
            return codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as error:
            if self._strict:
                raise UserError(
                    f"{where} is not UTF-8 text ({error.reason} at byte {before + error.start}): "
                    "convert it (iconv -t UTF-8), leave it out, or leave out --strict"
                ) from error
        text, read = codecs.utf_8_decode(data, "replace", final)
        self.replaced += text.count("\ufffd") - data[:read].count("\ufffd".encode())
        return text, read

    def _json_lines(
        self, where: str, chunks: Iterable[bytes]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, line in enumerate(_lines(chunks), start=1):
            if not line.strip():
                continue
            place = f"{where}:{number}"
            text, _ = self._decoded(place, line.removeprefix(codecs.BOM_UTF8), 0, final=True)
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:  # of [[[[... there is no end
                why = str(error)
                if isinstance(error, json.JSONDecodeError):
                    why = f"{error.msg.removesuffix(' at')}, at character {error.colno}"
                raise UserError(
                    f"{place} is not JSON ({why}): give one JSON object a line"
                ) from error
            if not isinstance(record, dict):
                raise UserError(f"{place} is no JSON object: give one a line")
            yield place, record

    def _read(self, where: str, record: dict[str, Any]) -> Document:
        """A record's text or tokens, and what it is to be divided by."""
        field = self._group_field
        group = _field(where, record, field, "--split-by") if field else ""
        if self._examples:
            ids = self._examples.ids(where, self._whole(where, record))
            return Document("", "", group, ids=ids)
        text = _field(where, record, self._text_field, "--text-field")
        return Document("", self._whole(where, text), group)

    def _whole(self, where: str, value: Any) -> Any:
        """The same without halves of characters, which JSON can spell as escapes."""
        if isinstance(value, list):
            return [self._whole(where, each) for each in value]
        if isinstance(value, dict):
            return {name: self._whole(where, each) for name, each in value.items()}
        if not isinstance(value, str) or not _SURROGATES.search(value):
            return value
        if self._strict:
            raise UserError(
                f"{where} holds half of a surrogate pair: mend or remove the line, or leave "
                "out --strict"
            )
        text, count = _SURROGATES.subn("\ufffd", value)
        self.replaced += count
        return text


def joined(documents: Iterable[Document]) -> Iterator[Document]:
    """The same, those that come in parts made whole."""
    begun: list[str] = []
    for document in documents:
        begun.append(document.text)
        if not document.continues:
            yield dataclasses.replace(document, text="".join(begun)) if begun[1:] else document
            begun.clear()


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest = [others[-1]]
    yield b"".join(rest)


def _last_cut(text: str) -> int:
    """The last place between a word and the space after it, near the end; 0 where none is."""
    near = max(1, len(text) - (1 << 16))
    return max((found.start() for found in WORD_END.finditer(text, near)), default=0)


def _field(where: str, record: dict[str, Any], field: str, option: str) -> str:
    """The text in a field, or in one of a record within, as `meta.name`.

    Raises:
      UserError: there is none.
    """
    found = looked_up(record, field)
    if not isinstance(found, str):
        raise lacking(where, record, field, f"name the field with {option}")
    return found
