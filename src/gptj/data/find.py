"""Which files the inputs mean: files, folders and patterns, on disk or behind a URL."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gptj.errors import UserError
from gptj.files import File, Folder, file_at, is_url, matches, matching, unreadable

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
LINES = frozenset({".jsonl", ".ndjson"})
TABLES = frozenset({".parquet", ".arrow"})
TOKENS = frozenset({".tfrecord", ".tfrecords", ".index", ".idx"})
KINDS = TEXT_SUFFIXES | LINES | TABLES | TOKENS | {".tar"}
HIDDEN = ".*"
"""Names that match are passed over."""
PACKED = frozenset({".gz", ".zst", ".xz"})
UNREAD = frozenset({".bz2", ".zip", ".lz4", ".7z", ".rar", ".br", ".lzma", ".z"})
"""Of small files what they hold might pass for a text with odd bytes."""
_SHORT = {".tgz": ".tar.gz", ".txz": ".tar.xz", ".tzst": ".tar.zst"}


@dataclass(frozen=True)
class Source:
    """A file of documents. `name` is unique among the inputs and says nothing of their place."""

    file: File
    name: str

    @property
    def kind(self) -> str:
        """The suffix that says what the file holds once unpacked."""
        return kind_of(self.file.path)


@dataclass(frozen=True)
class Inputs:
    """The files to read, in order, and how many were passed over in folders."""

    sources: tuple[Source, ...]
    skipped: int


def find_sources(inputs: Sequence[str | os.PathLike[str]], exclude: Sequence[str] = ()) -> Inputs:
    """The files among `inputs`: files as named, folders searched and patterns met in sorted order.

    In folders and of what patterns meet, hidden files and whatever lies under a name that matches
    a pattern of `exclude` are ignored; in folders links (which are not followed), empty files and
    those of unknown kind are skipped.

    Raises:
      UserError: a path is missing or given twice, or a folder holds nothing to read.
    """
    if not inputs:
        raise UserError("no input given: name the text files or folders to prepare")
    places = [place for given in inputs for place in _meant(os.fspath(given), exclude)]
    files: list[File] = []
    skipped, bases = 0, []
    for place in places:
        if (file := file_at(place)) is not None:
            _check_named(place)
            files.append(file)
            bases.append(absolute(place).rpartition("/")[0])
            continue
        folder = Folder(place)
        if not folder.is_there:
            raise _missing(place)
        found, others = _search(folder, exclude)
        files += found
        skipped += others
        bases.append(absolute(place).rstrip("/"))
    return Inputs(tuple(map(Source, files, _names(files, bases))), skipped)


def kind_of(name: str) -> str:
    """The suffix that says what a file of that name holds once unpacked."""
    path = PurePosixPath(unshortened(name.lower()))
    return PurePosixPath(path.stem).suffix if path.suffix in PACKED else path.suffix


def is_packed(name: str) -> bool:
    """Whether a file of that name is compressed."""
    return PurePosixPath(name.lower()).suffix in PACKED


def unshortened(name: str) -> str:
    """The name with `.tar.gz` for `.tgz` and the like."""
    stem, suffix = os.path.splitext(name)
    return stem + _SHORT.get(suffix.lower(), suffix)


def _meant(given: str, exclude: Sequence[str]) -> list[str]:
    if not _is_pattern(given) or (not is_url(given) and os.path.exists(given)):
        return [given]
    found = [place for place in matching(given) if not place.rpartition("/")[2].startswith(".")]
    # What the pattern spells out is asked for; `exclude` is of what it leaves open.
    spelt = next(n for n, part in enumerate(PurePosixPath(given).parts) if _is_pattern(part))

    def is_left(place: str) -> bool:
        return not matches("/".join(PurePosixPath(place).parts[spelt:]), exclude)

    for closed in [] if is_url(given) else filter(is_left, _closed(given)):
        raise unreadable(closed, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    found = list(filter(is_left, found))
    if not found:
        but = " that --exclude leaves" if exclude else ""
        raise UserError(f"no file{but} matches {given}: check the pattern")
    # Of a folder that is met with what lies in it, as by `**`, the latter is meant.
    around = {parent.as_posix() for place in found for parent in PurePosixPath(place).parents}
    return [place for place in found if PurePosixPath(place).as_posix() not in around]


def _closed(pattern: str) -> Iterator[str]:
    """The folders of this machine that a pattern would look into, and may not."""
    parts = Path(pattern).parts
    for count in range(1, len(parts)):  # what all of it meets is looked into when it is read
        if any(map(_is_pattern, parts[: count + 1])):
            for folder in glob.iglob(os.path.join(*parts[:count], ""), recursive=True):
                if not os.access(folder, os.R_OK | os.X_OK):
                    yield folder


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _missing(place: str) -> UserError:
    """A sentence about an input that is neither a file nor a folder."""
    try:
        if not is_url(place) and os.stat(place):
            return UserError(
                f"{place} is no file, and inputs are read more than once: write it to one"
            )
    except PermissionError as error:
        return unreadable(place, error)
    except OSError:
        pass
    return UserError(f"no input {place}: give the path of an existing file or folder")


def _index_of(path: str) -> str:
    """The index that Megatron's tokens of that name would have; empty for other files."""
    return path.removesuffix(".bin") + ".idx" if path.endswith(".bin") else ""


def _check_named(place: str) -> None:
    """See that a file can be read as what its name says, and without the one beside it."""
    if (suffix := PurePosixPath(place.lower()).suffix) in UNREAD:
        raise UserError(f"{place} is packed as {suffix}, which is not read: pack it as .zst or .gz")
    if (index := _index_of(place)) and file_at(index):
        raise UserError(f"{place} holds tokens, and {index} says where: name {index} instead")


def _search(folder: Folder, exclude: Sequence[str]) -> tuple[list[File], int]:
    """The files to read under `folder`, and the number of others."""
    found, others, links, beside = [], 0, 0, set()
    for name, file in folder.walk(but=(HIDDEN, *exclude)):
        kind = kind_of(name)
        is_kept = PurePosixPath(name).name.startswith("cache-") and kind == ".arrow"
        if file and kind in KINDS and file.size and not is_kept:  # not what `datasets` kept by
            found.append(file)
        elif file and (index := _index_of(file.path)):
            beside.add(index)
        else:
            others += 1
            links += file is None
    others += len(beside - {file.path for file in found})  # of the rest is read by its index
    if not found and links:
        raise UserError(
            f"no text file in the folder {folder} but links, which are not followed: name them "
            "outright, or with a pattern, or give the folder that they lead to"
        )
    if not found:
        raise UserError(
            f"no text file in the folder {folder}: give .txt, .md, .jsonl, .parquet, .arrow, .tar "
            "or source files (also as .gz, .zst or .xz), or name a file of another suffix outright"
        )
    return found, others


def absolute(place: str) -> str:
    """One spelling of a place."""
    return place if is_url(place) else Path(place).resolve().as_posix()


def _names(files: Iterable[File], bases: Sequence[str]) -> Iterator[str]:
    """Relative to what the inputs share: the same data under another path is the same data.

    Raises:
      UserError: two are one file, or would have one name.
    """
    base = os.path.commonpath(bases) if len(set(map(is_url, bases))) == 1 else ""
    places: dict[str, str] = {}
    names: dict[str, str] = {}
    for file in files:
        place = absolute(file.path)
        name = PurePosixPath(os.path.relpath(place, base)).as_posix() if base else place
        if place in places:
            other = "" if places[place] == file.path else f", once as {places[place]}"
            raise UserError(
                f"{file.path} is among the inputs twice{other}: name it, or its folder, once"
            )
        if any("\ud800" <= sign <= "\udfff" for sign in name):  # as Python spells odd bytes
            raise UserError(f"{file.path!a} has a name that is not UTF-8: rename it")
        if name in names:
            raise UserError(f"{file.path} and {names[name]} have one name: prepare them apart")
        places[place] = file.path
        names[name] = file.path
        yield name
