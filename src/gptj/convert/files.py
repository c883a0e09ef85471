"""Files wherever they lie, read by ranges of bytes: on disk, or behind a URL such as gs://."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from gptj.errors import UserError

READ_AT_ONCE = 1 << 30
"""Bytes the system is asked for in one call; Linux gives at most 2 GiB."""


@dataclass(frozen=True)
class File:
    """A file of `size` bytes that can be read in parts, from several threads."""

    path: str
    size: int
    remote: Any = None
    """The fsspec file system that holds it, or None for this machine's own."""

    def read(self, start: int = 0, stop: int | None = None) -> UInt8[np.ndarray, " bytes"]:
        """The bytes from `start` up to `stop`, the end when not given.

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
            part = self.remote.cat_file(self.path, start=start, end=stop)
            return np.frombuffer(part, np.uint8).copy()  # writable, as the reader's own
        into = np.empty(stop - start, np.uint8)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            done = 0
            while done < len(into):
                part = into[done : done + READ_AT_ONCE]
                count = os.preadv(descriptor, [part.data], start + done)
                if not count:
                    raise UserError(f"{self.path} became shorter while it was read: try again")
                done += count
        finally:
            os.close(descriptor)
        return into

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
    """A folder on disk or behind a URL, and the files in it by relative name."""

    def __init__(self, place: str | os.PathLike[str]) -> None:
        self.place = str(place)
        self._remote: Any = None
        self._root = self.place
        if is_url(self.place):
            import fsspec

            try:
                self._remote, self._root = fsspec.core.url_to_fs(self.place)
            except (ImportError, ValueError) as error:
                raise UserError(f"{self.place} cannot be opened: {error}") from error

    def __str__(self) -> str:
        return self.place

    def __contains__(self, name: str) -> bool:
        return self._size(self._within(name)) is not None

    def file(self, name: str) -> File:
        """The file called `name`, which may lie in a folder below this one.

        Raises:
          UserError: it is not there, or the name points out of the folder.
        """
        path = self._within(name)
        size = self._size(path)
        if size is None:
            raise UserError(f"{path} is missing: download or copy the whole of {self.place}")
        return File(path, size, self._remote)

    def folder(self, name: str) -> Folder:
        """The folder called `name` in this one."""
        return Folder(f"{self.place.rstrip('/')}/{name}")

    @property
    def parent(self) -> Folder:
        """The folder this one lies in."""
        if self._remote is None:
            return Folder(Path(self.place).absolute().parent)
        return Folder(self.place.rstrip("/").rpartition("/")[0])

    def names(self) -> Sequence[str]:
        """The names of the files and folders directly in this one, sorted; none if it is absent."""
        if self._remote is not None:
            try:
                found = self._remote.ls(self._root, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)
        return sorted(os.listdir(self._root)) if os.path.isdir(self._root) else []

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
        try:
            return int(self._remote.size(path)) if self._remote.isfile(path) else None
        except FileNotFoundError:
            return None


def is_url(place: str) -> bool:
    """Whether `place` is a URL rather than a path."""
    return "://" in place
