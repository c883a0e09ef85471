"""Zip archives of uncompressed entries: where in the file each one's bytes lie."""

from __future__ import annotations

import functools
import io
import os
import threading
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Shaped, UInt8

from gptj.convert.tensor import Matrix, Tensor
from gptj.errors import UserError
from gptj.files import File, Scratch

LOCAL_HEADER = 30
"""Bytes of an entry's own header; its name, an extra field and its data follow."""

Bytes = UInt8[np.ndarray, " bytes"]

Part = tuple[int, int]
"""The size of a part of an entry, and its CRC-32."""


@dataclass(frozen=True)
class Entry:
    """A file in the archive: a header, and its `size` bytes of data as they are."""

    file: File
    name: str
    header: int
    size: int
    crc: int

    @cached_property
    def start(self) -> int:
        """Where the data begin, which only the entry's own header tells."""
        header = self.file.read(self.header, self.header + LOCAL_HEADER).tobytes()
        lengths = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        start = self.header + LOCAL_HEADER + sum(lengths)
        if not header.startswith(b"PK\x03\x04") or start + self.size > self.file.size:
            damaged(self.file, f"the header of {short(self.name)} is not one")
        return start

    def content(self, most: int) -> bytes:
        """The entry's bytes, of which there may be up to `most`."""
        if self.size > most:
            damaged(self.file, f"{short(self.name)} has {self.size} bytes, and {most} are plenty")
        content = self.file.read(self.start, self.start + self.size).tobytes()
        self.compare(zlib.crc32(content))
        return content

    def compare(self, found: int) -> None:
        """Refuse the entry if its bytes have another checksum than it says."""
        # torch.serialization.set_crc32_options(False) leaves the sums out.
        if self.crc and found != self.crc:
            damaged(self.file, f"the checksum of {short(self.name)} does not match")


def array(entry: Entry, shape: tuple[int, ...], dtype: np.dtype[Any], head: Bytes) -> Tensor:
    """The array in row-major order that is all of the entry after `head`.

    It is refused when it is read, if it does not have its checksum. Read in parts, by several
    threads in whatever order, it is refused with the last part.
    """
    first, lock = (len(head), zlib.crc32(head.data)), threading.Lock()
    sums: dict[int, Part] = {}

    def part(begin: int, end: int, scratch: Scratch | None = None) -> Bytes:
        return entry.file.read(entry.start + begin, entry.start + end, scratch)

    def read() -> Shaped[np.ndarray, "..."]:
        stored = part(len(head), entry.size)
        entry.compare(zlib.crc32(stored.data, zlib.crc32(head.data)))
        return stored.view(dtype).reshape(shape)

    def rows(begin: int, end: int, scratch: Scratch) -> Shaped[np.ndarray, "rows columns"]:
        width = shape[1] * dtype.itemsize
        stored = part(len(head) + begin * width, len(head) + end * width, scratch)
        found = len(stored), zlib.crc32(stored.data)
        with lock:
            sums[begin] = found
            parts = [first, *(sums[at] for at in sorted(sums))]
            if complete := sum(size for size, _ in parts) == entry.size:
                sums.clear()  # for the next reading
        if complete:
            entry.compare(functools.reduce(_joined, parts)[1])
        return stored.view(dtype).reshape(end - begin, shape[1])

    matrix = Matrix(shape, rows, checked=True) if len(shape) == 2 else None
    return Tensor(shape, dtype, read, matrix)


CRC_POLYNOMIAL = 0xEDB88320
"""The one of CRC-32; the highest bit is the lowest power, as in all that follows."""


def _joined(first: Part, second: Part) -> Part:
    """Two parts as one.

    A CRC is a polynomial over the integers modulo 2, modulo another polynomial: the first part's
    is multiplied by x to the power of the bits that follow it, and the second part's added.
    """
    return first[0] + second[0], _times(_shift(second[0]), first[1]) ^ second[1]


@functools.cache
def _shift(size: int) -> int:
    """The polynomial x to the power of as many bits as `size` bytes have."""
    power, square = 1 << 31, 1 << 23
    while size:
        power = _times(power, square) if size & 1 else power
        square, size = _times(square, square), size >> 1
    return power


def _times(a: int, b: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        product ^= b * (a >> bit & 1)
        b = b >> 1 ^ CRC_POLYNOMIAL * (b & 1)
    return product


class _Stream(io.RawIOBase):
    """A File as what zipfile reads from."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origins = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}
        if origins[whence] + offset < 0:
            # zipfile looks for its directory from the end, and understands this of a short file.
            raise OSError("before the start of the file")
        self._at = origins[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._file.size - self._at))
        if count:
            buffer[:count] = self._file.read(self._at, self._at + count).tobytes()
        self._at += count
        return count


def entries(file: File) -> dict[str, Entry]:
    """The entries of a zip archive by name; their own headers are read when they are.

    Raises:
      UserError: it is no zip archive, is damaged or cut short, or an entry is compressed, stands
        there twice or cannot lie in the file as it says.
    """
    try:
        with io.BufferedReader(_Stream(file)) as stream, zipfile.ZipFile(stream) as archive:
            infos = archive.infolist()
    except UserError:
        raise
    except Exception as error:  # a damaged archive makes zipfile raise many things
        damaged(file, error)
    found: dict[str, Entry] = {}
    for info in infos:
        if info.filename in found:
            damaged(file, f"it holds {short(info.filename)} twice")
        found[info.filename] = _entry(file, info)
    return found


def _entry(file: File, info: zipfile.ZipInfo) -> Entry:
    name = short(info.filename)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise UserError(
            f"{file.path} holds {name} compressed or encrypted, which no such checkpoint is: save "
            "it again uncompressed"
        )
    if info.compress_size != info.file_size or info.header_offset < 0:
        damaged(file, f"the record of {name} contradicts itself")
    if info.header_offset + LOCAL_HEADER + info.file_size > file.size:
        damaged(file, f"{name} should have {info.file_size} bytes, and the file has {file.size}")
    return Entry(file, info.filename, info.header_offset, info.file_size, info.CRC)


def short(name: object) -> str:
    """A name out of a file, quoted, on one line and of bounded length."""
    return repr(str(name)[:100] if isinstance(name, str | int) else type(name).__name__)


def damaged(file: File, why: object) -> NoReturn:
    """Raise that `file` is damaged, and why."""
    if isinstance(why, Exception):
        why = f"{type(why).__name__} {short(str(why))}"
    raise UserError(
        f"{file.path} is damaged or not what its name says ({why}): download or copy it again"
    ) from None
