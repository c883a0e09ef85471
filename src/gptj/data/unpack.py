"""The contents of a file as it is read, unpacked: gzip, Zstandard, xz."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import IO

import zstandard

from gptj.data.find import unshortened
from gptj.errors import UserError
from gptj.files import File, reaching, unreadable

CHUNK_BYTES = 1 << 20
_BAD = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError, lzma.LZMAError)


def unpacked(file: File) -> Iterator[bytes]:
    """A part at a time.

    Raises:
      UserError: the file is corrupt, cut short or cannot be read.
    """
    with reading(file), file.open() as packed:
        yield from unpacked_as(file.path, packed)


def unpacked_as(name: str, packed: IO[bytes]) -> Iterator[bytes]:
    """What a file of that name holds, a part at a time."""
    match unshortened(name.lower()).rpartition(".")[2]:
        case "gz":
            with gzip.GzipFile(fileobj=packed) as file:
                yield from parts(file)
        case "xz":
            yield from _unxz(packed)
        case "zst":
            yield from _unzstd(packed)
        case _:
            yield from parts(packed)


@contextlib.contextmanager
def reading(file: File) -> Iterator[None]:
    """Turn what may be wrong with a file into one sentence."""
    try:
        if file.remote is None:
            yield
        else:
            with reaching(file.path, but=(UserError, *_BAD)):
                yield
    except _BAD as error:
        raise UserError(
            f"{file.path} is corrupt or cut short ({error}): fetch or compress it again"
        ) from error
    except OSError as error:
        raise unreadable(file.path, error) from error


def parts(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    """What is left of a file."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


class Stream(io.RawIOBase):
    """Parts as a file that can only be read on."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        """Some bytes, none at the end."""
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        size = min(len(into), len(self._rest))
        into[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _unzstd(file: IO[bytes]) -> Iterator[bytes]:
    # zstandard's own reader takes a file that is cut short for a whole one; `eof` tells them apart.
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = unpacker.decompressobj()
    for chunk in parts(file):
        while chunk:
            if frame.eof:
                frame = unpacker.decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data
    if not frame.eof:
        raise EOFError("the last frame does not end")


def _unxz(file: IO[bytes]) -> Iterator[bytes]:
    # lzma's own reader takes what follows the first stream, and is none, for nothing.
    unpacker = lzma.LZMADecompressor()
    for chunk in parts(file):
        while chunk:
            if unpacker.eof:  # between streams there may be zeros
                if not (chunk := chunk.lstrip(b"\0")):
                    break
                unpacker = lzma.LZMADecompressor()
            yield unpacker.decompress(chunk, CHUNK_BYTES)
            while not unpacker.needs_input and not unpacker.eof:
                yield unpacker.decompress(b"", CHUNK_BYTES)
            chunk = unpacker.unused_data
    if not unpacker.eof:
        raise EOFError("the last stream does not end")
