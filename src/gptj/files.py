"""Files wherever they lie, read by ranges of bytes: on disk, or behind a URL such as gs://."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8

from gptj.errors import UserError

READ_AT_ONCE = 1 << 30
"""Bytes the system is asked for in one call; Linux gives at most 2 GiB."""

BLOCK = 4096
"""Bytes; what is read past the system's cache begins and ends at a multiple."""

DIRECT_READS = 1 << 18
"""Bytes from which on a read may go past the system's cache."""

CLOUD = ("gs://", "gcs://", "s3://", "s3a://")
"""How URLs begin that the extra `cloud` has the packages for."""

HUGE_PAGE = 2 << 20
"""Bytes; the disk fills memory in whole pages of this size at twice the speed."""


class Scratch:
    """Memory that one reading after the other goes to: new memory costs more than the reading."""

    def __init__(self) -> None:
        self._whole = np.empty(0, np.uint8)

    def take(self, size: int) -> UInt8[np.ndarray, " bytes"]:
        """The first `size` bytes; what was taken before is no longer good."""
        if len(self._whole) < size:
            self._whole = _aligned(size, HUGE_PAGE)
        return self._whole[:size]


@dataclass(frozen=True)
class File:
    """A file of `size` bytes that can be read in parts, from several threads."""

    path: str
    """What messages call it."""
    size: int
    remote: Any = None
    """The fsspec file system that holds it, or None for this machine's own."""
    held_at: str = ""
    """Where it lies there, if not at `path`."""

    def __reduce__(self) -> tuple[type[File], tuple[str, int, Any, str]]:
        """The file itself, for another process, and not what is open here."""
        return File, (self.path, self.size, self.remote, self.held_at)

    def read(
        self, start: int = 0, stop: int | None = None, scratch: Scratch | None = None
    ) -> UInt8[np.ndarray, " bytes"]:
        """The bytes from `start` up to `stop`, the end when not given, if asked in `scratch`.

        Raises:
          UserError: the file is shorter than that.
        """
        stop = self.size if stop is None else stop
        if not 0 <= start <= stop <= self.size:
            raise UserError(
                f"{self.path} has {self.size} bytes and should have {stop}: it is cut short, "
                "download or copy it again"
            )
        if self.remote is not None:
            with reaching(self.path):
                where = self.held_at or self.path
                part = self.remote.cat_file(where, start=start, end=stop) if stop > start else b""
            if len(part) > stop - start:
                raise UserError(f"{self.path} is sent whole or not at all: copy it to this machine")
            if len(part) < stop - start:
                raise UserError(f"{self.path} became shorter while it was read: try again")
            return np.frombuffer(part, np.uint8).copy()  # writable, as the reader's own
        if stop - start >= DIRECT_READS and self._direct is not None:
            with contextlib.suppress(OSError):  # some file systems open so, and then cannot read
                return self._read_direct(self._direct, start, stop, scratch)
        into = scratch.take(stop - start) if scratch else np.empty(stop - start, np.uint8)
        self._fill(self._descriptor, into, start, len(into))
        return into

    def _read_direct(
        self, descriptor: int, start: int, stop: int, scratch: Scratch | None
    ) -> UInt8[np.ndarray, " bytes"]:
        """Read whole blocks of the disk around the range, into memory that begins as blocks do."""
        first = start - start % BLOCK
        size = -(-(stop - first) // BLOCK) * BLOCK
        into = scratch.take(size) if scratch else _aligned(size, BLOCK)
        self._fill(descriptor, into, first, stop - first)
        return into[start - first : stop - first]

    def _fill(self, descriptor: int, into: np.ndarray, start: int, count: int) -> None:
        """Read to `into` from `start` on until at least `count` bytes are there."""
        done = 0
        while done < count:
            part = into[done : done + READ_AT_ONCE]
            read = os.preadv(descriptor, [part.data], start + done)
            if not read:
                raise UserError(f"{self.path} became shorter while it was read: try again")
            done += read

    @cached_property
    def _descriptor(self) -> int:
        # Kept open, since what the system reads ahead of a file it forgets when that is closed.
        try:
            descriptor = os.open(self.held_at or self.path, os.O_RDONLY)
        except OSError as error:
            raise unreadable(self.path, error) from error
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    @cached_property
    def _direct(self) -> int | None:
        """The file opened past the system's cache, where it is large and the system can.

        A file of an eighth of the memory would push out of the cache all else and soon itself,
        and to pass through it costs more time than the disk takes.
        """
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if self.size * 8 < memory or not hasattr(os, "O_DIRECT"):
            return None
        try:
            descriptor = os.open(self.held_at or self.path, os.O_RDONLY | os.O_DIRECT)
        except OSError:  # a file system in memory has no such thing
            return None
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def open(self) -> BinaryIO:
        """The file, to be read from its beginning.

        Raises:
          UserError: it cannot be reached.
        """
        where = self.held_at or self.path
        if self.remote is not None:
            with reaching(self.path):
                opened: BinaryIO = self.remote.open(where, "rb")
                return opened
        try:
            return open(where, "rb")
        except OSError as error:
            raise unreadable(self.path, error) from error

    def text(self) -> str:
        """The whole file as UTF-8 text.

        Raises:
          UserError: it is not that.
        """
        try:
            return self.read().tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is not UTF-8 text ({error.reason})") from None


class Folder:
    """A folder on disk or behind a URL, and the files in it by relative name.

    `place` is what messages call it; with `unpacked`, an archive's name or a folder in it, whose
    files lie in the folder of that name.
    """

    def __init__(self, place: str | os.PathLike[str], unpacked: Path | None = None) -> None:
        self.place = str(place)
        self._unpacked = unpacked
        self._remote: Any = None
        self._root = str(unpacked or place)
        if unpacked is None and is_url(self.place):
            self._remote, self._root = _opened(self.place)

    def __str__(self) -> str:
        return self.place

    @property
    def on_disk(self) -> Path:
        """Where it lies, if on this machine."""
        return Path(self._root)

    def __contains__(self, name: str) -> bool:
        return self._size(self._within(name)) is not None

    def file(self, name: str) -> File:
        """The file called `name`, which may lie in a folder below this one.

        Raises:
          UserError: it is not there, or the name points out of the folder.
        """
        held_at, path = self._within(name), f"{self.place.rstrip('/')}/{name}"
        size = self._size(held_at)
        if size is None:
            raise UserError(f"{path} is missing: download or copy the whole of {self.place}")
        return File(path, size, self._remote, held_at)

    def folder(self, name: str) -> Folder:
        """The folder called `name` in this one."""
        return Folder(f"{self.place.rstrip('/')}/{name}", self._unpacked and self._unpacked / name)

    @property
    def parent(self) -> Folder:
        """The folder this one lies in."""
        if self._unpacked is not None:
            return Folder(Path(self.place).parent, self._unpacked.parent)
        if self._remote is None:
            return Folder(Path(self.place).absolute().parent)
        above = self.place.rstrip("/").rpartition("/")[0]
        return Folder(above) if is_url(above) and not above.endswith("/") else self

    def names(self) -> Sequence[str]:
        """The names of the files and folders directly in this one, sorted; none if it is absent."""
        if self._remote is not None:
            with reaching(self.place):
                try:
                    paths = [str(path) for path in self._remote.ls(self._root, detail=False)]
                except (FileNotFoundError, NotADirectoryError):
                    return []
            own = self._root.strip("/")  # services list a file, or an empty folder, as in itself
            found = [path.strip("/") for path in paths if path.strip("/") != own]
            return sorted(path.rpartition("/")[2] for path in found)
        try:
            return sorted(os.listdir(self._root)) if os.path.isdir(self._root) else []
        except OSError as error:
            raise unreadable(self.place, error) from error

    def walk(self, but: Sequence[str] = ()) -> Iterator[tuple[str, File | None]]:
        """Every file here and in the folders below, by its name from here, sorted.

        Links, to files or folders, are not followed: `None` stands for them, and for all else that
        is no file. What lies under a name that matches a pattern of `but` is passed over.

        Raises:
          UserError: a folder cannot be read.
        """
        sizes: dict[str, int | None] = {}
        if self._remote is not None:
            with reaching(self.place):
                found = self._remote.find(self._root, detail=True)
                ask = self._remote.size  # plain HTTP lists names without sizes
                sizes = {path: at["size"] or ask(path) or 0 for path, at in found.items()}
        else:
            sizes = dict(_walked(self._root, but))
        root = self._root.strip("/") if self._remote is not None else self._root
        for path in sorted(sizes):
            within = os.path.relpath(f"/{path.lstrip('/')}", f"/{root.lstrip('/')}")
            name = PurePosixPath(within).as_posix()
            if not matches(name, but):
                size, called = sizes[path], f"{self.place.rstrip('/')}/{name}"
                yield name, None if size is None else File(called, size, self._remote, path)

    @property
    def is_there(self) -> bool:
        """Whether there is such a folder."""
        if self._remote is None:
            return os.path.isdir(self._root)
        with reaching(self.place):
            return bool(self._remote.isdir(self._root))

    def _within(self, name: str) -> str:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name:
            raise UserError(
                f"{self.place} names a file outside itself, {name!r}: it is not to be trusted"
            )
        return f"{self._root.rstrip('/')}/{'/'.join(parts)}"

    def _size(self, path: str) -> int | None:
        if self._remote is None:
            return os.path.getsize(path) if os.path.isfile(path) else None
        with reaching(self.place), contextlib.suppress(FileNotFoundError):
            if self._remote.isfile(path):
                found = self._remote.info(path)
                # A web server leads from a folder's name to its page, whose own ends in a slash.
                return None if str(found.get("url")).endswith("/") else int(found["size"])
        return None


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a part of a path matches one of them."""
    parts = PurePosixPath(name).parts
    return any(fnmatch(part, pattern) for part in parts for pattern in patterns)


def _walked(root: str, but: Sequence[str]) -> Iterator[tuple[str, int | None]]:
    """Each file under `root`, and its size; without one what is no file, or a link."""

    def fail(error: OSError) -> None:
        raise unreadable(str(error.filename), error) from error

    for folder, inner, names in os.walk(root, onerror=fail):
        inner[:] = [name for name in inner if not matches(name, but)]
        for name in names + inner:
            path = os.path.join(folder, name)
            if os.path.islink(path) or not os.path.isdir(path):
                is_file = os.path.isfile(path) and not os.path.islink(path)
                yield path, os.path.getsize(path) if is_file else None


def unreadable(path: str, error: OSError) -> UserError:
    """A sentence about a file or folder on this machine that cannot be read."""
    remedy = "check it"
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "allow yourself to read it, or leave it out"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        remedy = "allow more open files (ulimit -n)"
    return UserError(f"{path} cannot be read ({error.strerror or error}): {remedy}")


def _aligned(size: int, to: int) -> UInt8[np.ndarray, " bytes"]:
    """Fresh memory whose address is a multiple of `to`."""
    raw = np.empty(size + to, np.uint8)
    return raw[-raw.ctypes.data % to :][:size]


def file_at(place: str) -> File | None:
    """The file on disk or behind a URL, if there is one."""
    if not is_url(place):
        return File(place, os.path.getsize(place)) if os.path.isfile(place) else None
    above, _, name = place.rpartition("/")
    folder = Folder(above)
    return folder.file(name) if name and name in folder else None


def matching(pattern: str) -> list[str]:
    """The files and folders that a pattern such as `books/**/*.txt` means, sorted."""
    if not is_url(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    remote, path = _opened(pattern)
    with reaching(pattern):
        return sorted(remote.unstrip_protocol(found) for found in remote.glob(path))


def is_url(place: str) -> bool:
    """Whether `place` is a URL rather than a path."""
    return "://" in place


def _opened(url: str) -> tuple[Any, str]:
    """The file system that a URL leads to, and the path in it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        remedy = (
            "pip install 'gptj-jax[cloud]'" if url.startswith(CLOUD) else "install that package"
        )
        raise UserError(f"{url} cannot be opened ({_reason(error)}): {remedy}") from error
    except ValueError as error:
        raise UserError(f"{url} cannot be opened ({_reason(error)}): check the address") from error


@contextlib.contextmanager
def reaching(place: str, but: tuple[type[Exception], ...] = (UserError,)) -> Iterator[None]:
    """Turn what goes wrong on the way to a remote place, `but` for some, into one sentence."""
    try:
        yield
    except but:
        raise
    except Exception as error:  # each kind of storage has errors of its own
        raise UserError(
            f"{place} cannot be read ({_reason(error)}): check the address, the network and your "
            "credentials"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def alone(lock: Path, otherwise: str) -> Iterator[None]:
    """Hold a file that no second process holds meanwhile.

    Raises:
      UserError: another does, of which `otherwise` says what that means.
    """
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go if we die
        except BlockingIOError:
            raise UserError(f"{otherwise}: wait for it to end, or stop it") from None
        except OSError:
            pass  # a file system without locks
        yield
