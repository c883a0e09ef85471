"""Files of token ids to documents of them: the original's TFRecords, Megatron's and GPT-NeoX's.

A TFRecord file is a row of records: their length as 8 bytes, a checksum of these, the data, a
checksum of those (https://www.tensorflow.org/tutorials/load_data/tfrecord). The data are a
`tf.train.Example`, a protocol buffer; of it the original wrote a single feature, `text`, of 2,049
ids. An `.idx` file says where in the `.bin` file beside it each sequence lies, how wide an id is
and at which sequences documents begin
(https://github.com/NVIDIA/Megatron-LM, `megatron/core/datasets/indexed_dataset.py`).
"""

from __future__ import annotations

import itertools
import posixpath
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gptj.data.find import Source, absolute
from gptj.data.unpack import parts, reading
from gptj.errors import UserError
from gptj.files import File, file_at, is_url

Ids = NDArray[np.int64]

_FEATURE = b"text"
_WIDTHS = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_MAGIC = b"MMIDIDX\0\0" + struct.pack("<Q", 1)
_AGAIN = "fetch or make it again"
_AT_ONCE = 1 << 16
"""Numbers of an index that are held at a time."""


def token_runs(file: File, kind: str) -> Iterator[Iterator[Ids]]:
    """The ids in a file, a record or a sequence at a time, in groups that no document leaves.

    Raises:
      UserError: it is not what its name says, or corrupt.
    """
    if kind == ".idx":
        yield from _megatron(file)
    elif kind == ".index":
        yield (ids for each in _listed(file) for ids in _tfrecords(each))
    else:
        yield _tfrecords(file)


def documents_of(runs: Iterable[Ids], eos: int) -> Iterator[Ids]:
    """Runs of ids, one after the other, cut after each end of text, which is left out."""
    begun: list[Ids] = []
    for run in runs:
        start = 0
        for end in np.flatnonzero(run == eos).tolist():
            yield np.concatenate([*begun, run[start:end]])
            begun, start = [], end + 1
        if start < len(run):
            begun.append(run[start:])
    if begun:
        yield np.concatenate(begun)


def check_listed(sources: Sequence[Source]) -> None:
    """See that what an `.index` names is not read a second time, by itself or for another one.

    Raises:
      UserError: it is.
    """
    read = {absolute(each.file.path): "is itself among the inputs" for each in sources}
    for index in (each.file for each in sources if each.kind == ".index"):
        for file in _listed(index):
            place = absolute(file.path)
            if place in read:
                raise UserError(
                    f"{index.path} names {file.path}, which {read[place]}: its tokens would be "
                    "read twice, so leave one out, as with --exclude '*.index'"
                )
            read[place] = f"{index.path} has named before"


def _listed(index: File) -> Iterator[File]:
    """The files that an original's `.index` names, a line each, from where it lies or is read."""
    for line in filter(None, map(str.strip, index.text().splitlines())):
        beside = posixpath.join(index.path.rpartition("/")[0], line)
        places = [line] if is_url(line) else [beside, line]
        found = next(filter(None, map(file_at, places)), None)
        if found is None:
            raise UserError(f"{index.path} names {line}, which is not there: copy it, or mend it")
        yield found


def _tfrecords(file: File) -> Iterator[Ids]:
    with reading(file), file.open() as opened:
        chunks = parts(opened)
        if "zstd" in file.path:  # what the original, which knew no other way, packed with zlib
            chunks = _inflated(chunks)
        for number, record in enumerate(_records(file.path, chunks)):
            yield _text_of(f"{file.path}, record {number},", record)


def _inflated(chunks: Iterable[bytes]) -> Iterator[bytes]:
    unpacker = zlib.decompressobj()
    for chunk in chunks:
        yield unpacker.decompress(chunk)
    yield unpacker.flush()
    if not unpacker.eof:
        raise EOFError("the compressed stream does not end")


def _records(path: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    held, number = bytearray(), 0

    def taken(size: int) -> bytes:
        while len(held) < size and (chunk := next(chunks, None)) is not None:
            held.extend(chunk)
        found = bytes(held[:size])
        del held[:size]
        if len(found) < size:
            raise UserError(f"{path} is cut short in record {number}: {_AGAIN}")
        return found

    while held or _more(held, chunks):
        head = taken(12)
        (size, sum_) = struct.unpack("<QI", head)
        if masked_crc(head[:8]) != sum_:
            raise UserError(f"{path} is no TFRecord file, or damaged in record {number}: {_AGAIN}")
        body = taken(size + 4)
        if masked_crc(body[:-4]) != struct.unpack("<I", body[-4:])[0]:
            raise UserError(f"{path} is damaged in record {number}: {_AGAIN}")
        yield body[:-4]
        number += 1


def _more(held: bytearray, chunks: Iterator[bytes]) -> bool:
    while not held and (chunk := next(chunks, None)) is not None:
        held.extend(chunk)
    return bool(held)


def masked_crc(data: bytes) -> int:
    """The checksum of TFRecord files: CRC-32C, rotated by 15 bits, and a constant added."""
    try:
        import google_crc32c
    except ImportError as error:
        raise UserError(
            "TFRecord files need google-crc32c: pip install 'gptj-jax[data]'"
        ) from error
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _text_of(where: str, example: bytes) -> Ids:
    """The int64 feature `text` of a `tf.train.Example`."""
    features = b"".join(_held(example, 1))
    names = []
    for entry in _held(features, 1):
        name = b"".join(_held(entry, 1))
        names.append(name.decode(errors="replace"))
        if name == _FEATURE:
            ints = [each for feature in _held(entry, 2) for each in _held(feature, 3)]
            if ints:
                runs = [_varints(run) for each in ints for run in _held(each, 1)]
                return np.concatenate([np.empty(0, np.int64), *runs])
    raise UserError(f"{where} has no feature 'text' of integers (it has {names}): {_AGAIN}")


def _held(message: bytes, field: int) -> Iterator[bytes]:
    """What stands in a field of a protocol buffer: bytes, or a varint as it is written."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 2:
            size, at = _varint(message, at)
            end = at + size
        elif key & 7 == 0:
            _, end = _varint(message, at)
        else:
            end = at + {1: 8, 5: 4}.get(key & 7, len(message))
        if key >> 3 == field:
            yield message[at:end]
        at = end


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
    return value, at


def _varints(packed: bytes) -> Ids:
    """Numbers of 7 bits a byte, the lowest first; the last byte of each has its high bit clear."""
    data = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(data < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    lengths = ends - starts + 1
    place = np.arange(len(data)) - np.repeat(starts, lengths)
    shifted = (data & 0x7F).astype(np.int64) << (7 * place)
    return np.add.reduceat(shifted, starts) if len(starts) else shifted


def _megatron(index: File) -> Iterator[Iterator[Ids]]:
    """The sequences of a `.bin` in documents, as the `.idx` tells of them."""
    data = file_at(index.path.removesuffix(".idx") + ".bin")
    if data is None:
        raise UserError(f"{index.path} has no .bin file beside it: copy both")
    head = index.read(0, min(34, index.size)).tobytes()
    if head[:17] != _MAGIC or len(head) < 34:
        raise UserError(f"{index.path} is no index of Megatron's (version 1): {_AGAIN}")
    code, count, bounds = struct.unpack("<BQQ", head[17:])
    if code not in _WIDTHS:
        raise UserError(f"{index.path} says that ids are of type {code}, which no integer is")
    kind = np.dtype(_WIDTHS[code])

    sizes, starts = _numbers(index, 34, "<i4", count), _numbers(index, 34 + 4 * count, "<i8", count)
    sequences = (
        data.read(start, start + size * kind.itemsize).view(kind).astype(np.int64)
        for start, size in zip(starts, sizes, strict=True)
    )
    before = 0
    for bound in itertools.chain(_numbers(index, 34 + 12 * count, "<i8", bounds), (count,)):
        if not before <= bound <= count:
            raise UserError(f"{index.path} has documents that do not end in order: {_AGAIN}")
        yield itertools.islice(sequences, bound - before)
        before = bound


def _numbers(file: File, place: int, kind: str, count: int) -> Iterator[int]:
    """So many numbers that stand in a file one after the other."""
    width = np.dtype(kind).itemsize
    for begin in range(0, count, _AT_ONCE):
        end = min(count, begin + _AT_ONCE)
        yield from file.read(place + width * begin, place + width * end).view(kind).tolist()
