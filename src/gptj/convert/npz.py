"""NumPy's .npz files of arrays `arr_0`, `arr_1`, ...: read in place, and written as a stream."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np

from gptj.convert import zipped
from gptj.convert.tensor import BFLOAT16, Tensor, contiguous
from gptj.errors import UserError
from gptj.files import File

LONGEST_HEADER = 1 << 12
DTYPES = (np.dtype("<f4"), np.dtype("<f2"), np.dtype("<i4"))


def arrays(file: File) -> list[Tensor]:
    """The arrays of a file, in their order; none of them is read.

    Two bytes without a type (`V2`) are a bfloat16: NumPy knows no name for it.

    Raises:
      UserError: the file is damaged, or an array is not what its entry's size says. Reading an
        array raises it if the array's bytes do not have the checksum the file gives them.
    """
    found = zipped.entries(file)
    expected = [f"arr_{number}.npy" for number in range(len(found))]
    if set(found) != set(expected):
        some = ", ".join(map(zipped.short, sorted(found)[:4]))
        raise UserError(
            f"{file.path} holds {some}, ..., not {len(found)} arrays named arr_0, arr_1 and so on: "
            "it is not of such a checkpoint"
        )
    return [_array(name, found[name]) for name in expected]


def _array(name: str, entry: zipped.Entry) -> Tensor:
    file, what = entry.file, f"{entry.file.path}: {name}"
    head = file.read(entry.start, entry.start + min(entry.size, LONGEST_HEADER))
    stream = io.BytesIO(head.tobytes())
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"format version {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        if any(size < 0 for size in shape):
            raise ValueError(f"shape {shape}")
    except Exception as error:  # a damaged header makes NumPy raise many things
        raise UserError(f"{what} is damaged: {' '.join(str(error).split())[:100]}") from None
    dtype = BFLOAT16 if dtype == np.dtype("V2") else dtype
    if fortran or dtype not in (BFLOAT16, *DTYPES):
        order = " in column order" * fortran
        raise UserError(
            f"{what} is of type {dtype}{order}, which the original never wrote: it is not of "
            "such a checkpoint"
        )
    header = head[: stream.tell()].copy()  # of a few bytes, where `head` has thousands
    tensor = zipped.array(entry, shape, dtype, header)
    if tensor.bytes != entry.size - len(header):
        raise UserError(
            f"{what} of shape {shape} needs {tensor.bytes} bytes, the file has "
            f"{entry.size - len(header)}: it is damaged or not to be trusted"
        )
    return tensor


def add(archive: zipfile.ZipFile, number: int, array: np.ndarray) -> None:
    """Append an array as `arr_{number}` to an open archive, uncompressed as `numpy.savez`."""
    with archive.open(f"arr_{number}.npy", "w", force_zip64=True) as out:
        descr: Any = "<V2" if array.dtype == BFLOAT16 else array.dtype.str
        header = {"descr": descr, "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(out, header)
        out.write(contiguous(array).reshape(-1).view(np.uint8).data)
