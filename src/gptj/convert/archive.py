"""Archives of a checkpoint, unpacked in one pass: `.tar`, plain or compressed."""

from __future__ import annotations

import gzip
import lzma
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import zstandard

from gptj.errors import UserError

BLOCK = 512
"""Bytes of a tar archive's unit; the archive ends with two that are all zeros, or at least one."""

WINDOW = 1 << 31
"""Bytes of memory a zstd archive may need, which is what `zstd --long=31` makes it need."""


def _zstd(stream: Any) -> Any:
    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    return decompressor.stream_reader(stream, read_across_frames=True)


OPENERS: dict[str, Callable[[Any], Any]] = {
    ".tar": lambda stream: stream,
    ".tar.gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".tar.xz": lzma.LZMAFile,
    ".tar.zst": _zstd,
    ".tar.zstd": _zstd,
}


def is_archive(name: str) -> bool:
    """Whether `name` is that of an archive that `unpack` unpacks."""
    return name.lower().endswith(tuple(OPENERS))


def unpack(archive: Path, into: Path) -> None:
    """Unpacks `archive` into the new folder `into`. On any error, `into` is gone again.

    Raises:
      UserError: `into` exists; the archive is missing, of no known kind, damaged or cut short; it
        holds something other than files and folders, or a name that leaves `into`; or the disk
        is full.
    """
    suffix = next((end for end in OPENERS if archive.name.lower().endswith(end)), None)
    if suffix is None:
        raise UserError(f"{archive} is not an archive: its name must end in {', '.join(OPENERS)}")
    try:
        stream = archive.open("rb")
    except OSError as error:
        raise UserError(f"{archive} cannot be opened ({error.strerror}): check the path") from None
    with stream:
        _make(into)
        try:
            _extract_or_explain(archive, OPENERS[suffix](stream), into)
        except BaseException:
            shutil.rmtree(into, ignore_errors=True)
            raise


def _make(into: Path) -> None:
    try:
        into.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{into} exists already: remove it, or choose another folder") from None
    except OSError as error:
        raise UserError(f"{into} cannot be made ({error.strerror}): choose another") from None


def _extract_or_explain(archive: Path, stream: Any, into: Path) -> None:
    try:
        _extract(archive, _Tail(stream), into)
    except UserError:
        raise
    except Exception as error:
        # gzip complains of damage with an OSError too, but one without the system's number.
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(
                f"{archive} could not be unpacked ({error.strerror}): free some space on its "
                "disk, or move it to a larger one"
            ) from None
        raise UserError(
            f"{archive} is damaged ({type(error).__name__}: {str(error)[:100]!r}): download or "
            "copy it again"
        ) from None


class _Tail:
    """A stream that remembers how many bytes were read from it, and the last of them."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.count = 0
        self.last = b""

    def read(self, size: int) -> bytes:
        part: bytes = self._stream.read(size)
        self.count += len(part)
        self.last = (self.last + part)[-BLOCK:]
        return part


def _extract(archive: Path, stream: Any, into: Path) -> None:
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            _check(archive, member)
            _expect_space(archive, member, into)
            tar.extract(member, into, set_attrs=False, filter="data")
    # tarfile takes an archive that was cut between two members for a whole one, and the rest has
    # to be read for the checksums after it.
    while stream.read(1 << 20):
        pass
    if stream.last.strip(b"\0") or stream.count < tar.offset + BLOCK:
        raise UserError(f"{archive} is cut short: download or copy it again")


def _check(archive: Path, member: tarfile.TarInfo) -> None:
    name, path = repr(member.name[:100]), PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise UserError(
            f"{archive} would write outside its folder, to {name}: it is not to be trusted, "
            "download it from where it was published"
        )
    if not member.isreg() and not member.isdir():
        raise UserError(
            f"{archive} holds {name}, which is a link or a device: only files and folders are "
            "unpacked, make the archive again without it"
        )
    if member.size < 0:
        raise UserError(f"{archive} is damaged at {name}: download or copy it again")


def _expect_space(archive: Path, member: tarfile.TarInfo, into: Path) -> None:
    free = shutil.disk_usage(into).free
    if free <= member.size:
        raise UserError(
            f"{archive} needs {member.size:,} bytes for {member.name[:100]!r}, and its disk has "
            f"{free:,} free: free some space there, or move it to a larger one"
        )
