"""Files and folders to documents, one at a time: plain text, JSON lines, gzip and Zstandard."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

import zstandard

from gptj.errors import UserError

TEXT_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("txt", "text", "md", "rst", "tex", "html", "htm", "css", "toml", "yaml", "yml", "ini"),
        *("py", "pyi", "c", "h", "cc", "cpp", "hpp", "cu", "cuh", "rs", "go", "java", "kt", "cs"),
        *("js", "jsx", "ts", "tsx", "rb", "php", "pl", "lua", "r", "jl", "hs", "ml", "scala"),
        *("swift", "clj", "ex", "exs", "erl", "lisp", "el", "sh", "bash", "sql", "cfg"),
    )
)
"""Read as one document a file. A file named outright is read as text whatever its suffix."""
_PACKED_SUFFIXES = (".gz", ".zst")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """A file of documents. `name` is unique among the inputs and says nothing of their place."""

    path: Path
    name: str


@dataclass(frozen=True)
class Document:
    """A text that stands by itself, from the source called `source`."""

    source: str
    text: str


@dataclass(frozen=True)
class Inputs:
    """The files to read, in order, and how many were passed over in folders."""

    sources: tuple[Source, ...]
    skipped: int


def find_sources(inputs: Sequence[Path], exclude: Sequence[str] = ()) -> Inputs:
    """The text files among `inputs`: files as named, folders searched in sorted order.

    In folders, hidden files and whatever lies under a name that matches a pattern of `exclude`
    are ignored, and so are links, whose targets are found themselves if they lie here; empty
    files and those of unknown kind are skipped.

    Raises:
      UserError: a path is missing or given twice, or a folder holds no text file.
    """
    if not inputs:
        raise UserError("no input given: name the text files or folders to prepare")
    files: list[Path] = []
    skipped = 0
    for path in inputs:
        if path.is_dir():
            found, others = _search(path, exclude)
            files += found
            skipped += others
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"no input {path}: give the path of an existing file or folder")
    _refuse_twice(files)
    # Names relative to what the inputs share: the same data under another path is the same data.
    base = os.path.commonpath([p.resolve() if p.is_dir() else p.resolve().parent for p in inputs])
    names = (Path(os.path.relpath(file.resolve(), base)).as_posix() for file in files)
    return Inputs(tuple(map(Source, files, names)), skipped)


def read_documents(source: Source, text_field: str = "text") -> Iterator[Document]:
    """The documents of one file: each line's `text_field` in JSON lines, else the whole file.

    A document without a character is left out.

    Raises:
      UserError: the file is empty, binary, corrupt, or a line is not what it should be.
    """
    chunks = _chunks(source.path)
    if _kind(source.path) == ".jsonl":
        texts = _json_lines(source.path, chunks, text_field)
    else:
        texts = iter((_plain_text(source.path, b"".join(chunks)),))
    empty = True
    for text in filter(None, texts):
        empty = False
        yield Document(source.name, text)
    if empty:
        raise UserError(f"{source.path} is empty: leave it out, or give a file with text")


def _search(folder: Path, exclude: Sequence[str]) -> tuple[list[Path], int]:
    """The text files under `folder`, and the number of other files."""
    texts, others = [], 0
    for path in sorted(folder.rglob("*"), key=lambda path: path.as_posix()):
        parts = path.relative_to(folder).parts
        if any(fnmatch(part, pattern) for part in parts for pattern in (".*", *exclude)):
            continue
        if path.is_symlink() or not path.is_file():
            continue
        if _kind(path) in TEXT_SUFFIXES | {".jsonl"} and path.stat().st_size:
            texts.append(path)
        else:
            others += 1
    if not texts:
        raise UserError(
            f"no text file in the folder {folder}: give .txt, .md, .jsonl or source files "
            "(also as .gz or .zst), or name a file of another suffix outright"
        )
    return texts, others


def _refuse_twice(files: Iterable[Path]) -> None:
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise UserError(f"{file} is among the inputs twice: name it, or its folder, once")
        seen.add(file.resolve())


def _kind(path: Path) -> str:
    """The suffix that says what the file holds once unpacked."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in _PACKED_SUFFIXES else suffix


def _chunks(path: Path) -> Iterator[bytes]:
    """The unpacked contents of a file, a part at a time."""
    try:
        with path.open("rb") as file:
            match path.suffix.lower():
                case ".gz":
                    yield from _parts(gzip.GzipFile(fileobj=file))
                case ".zst":
                    yield from _unzstd(file)
                case _:
                    yield from _parts(file)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise UserError(
            f"{path} is corrupt or cut short ({error}): fetch or compress it again"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file") from error


def _parts(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    # zstandard's own reader takes a file that is cut short for a whole one; `eof` tells them apart.
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = unpacker.decompressobj()
    for chunk in _parts(file):
        while chunk:
            if frame.eof:
                frame = unpacker.decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data
    if not frame.eof:
        raise EOFError("the last frame does not end")


def _plain_text(path: Path, contents: bytes) -> str:
    if b"\0" in contents:
        raise UserError(f"{path} is binary, it holds NUL bytes: leave it out or convert it to text")
    return _utf8(str(path), contents)


def _utf8(where: str, contents: bytes) -> str:
    try:
        return contents.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 text ({error.reason} at byte {error.start}): "
            "convert it (iconv -t UTF-8) or leave it out"
        ) from error


def _json_lines(path: Path, chunks: Iterable[bytes], field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(chunks), start=1):
        if line.strip():
            where = f"{path}:{number}"
            text = _field(where, _utf8(where, line), field)
            _refuse_surrogates(where, text)
            yield text


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    yield rest


def _field(where: str, line: str, field: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}): give one JSON object a line") from error
    if not isinstance(record, dict) or not isinstance(text := record.get(field), str):
        held = ", ".join(map(repr, record)) if isinstance(record, dict) else "no object"
        raise UserError(
            f"{where} has no text in a field {field!r} (it holds {held}): "
            "name the field with --text-field"
        )
    return text


def _refuse_surrogates(where: str, text: str) -> None:
    # JSON can spell half a character ("\ud83d"), which no UTF-8 text and no tokenizer can hold.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} holds half of a surrogate pair at character {error.start}: "
            "mend or remove the line"
        ) from error
