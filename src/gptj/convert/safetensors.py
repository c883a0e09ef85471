"""The safetensors format: 8 bytes of length, a JSON header, and the tensors' bytes one by one.

Read by ranges and written as a stream, so that no file is ever mapped or held in memory whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from gptj.convert.tensor import BFLOAT16, Tensor, contiguous, stored_at
from gptj.convert.zipped import short
from gptj.errors import UserError
from gptj.files import File

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
NAME_OF = {dtype: name for name, dtype in DTYPES.items()}

LONGEST_HEADER = 100 << 20
"""Bytes; a longer header is not a model's."""


def tensors(file: File) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
      UserError: the file is cut short, or its header is not one, or tensors overlap.
    """
    header, data = _header(file)
    try:
        entries = {name: _entry(value) for name, value in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError) as error:
        _damaged(file, error)
    end, held = 0, file.size - data
    for name, (dtype, shape, start, stop) in sorted(entries.items(), key=lambda e: e[1][2:]):
        size = math.prod(shape) * dtype.itemsize
        if start != end or stop - start != size or stop > held:
            raise UserError(
                f"{file.path}: {short(name)} of shape {short(str(shape))} claims bytes {start} to "
                f"{stop} of {held}: the file is damaged or cut short, get it again"
            )
        end = stop
    if end != held:
        raise UserError(
            f"{file.path} has {held} bytes of data, and its tensors {end}: the file is damaged, "
            "get it again"
        )
    return {
        name: stored_at(file, data + start, shape, dtype)
        for name, (dtype, shape, start, _) in entries.items()
    }


def metadata(file: File) -> dict[str, str]:
    """What stands in the header beside the tensors."""
    return dict(_header(file)[0].get("__metadata__", {}))


def _header(file: File) -> tuple[dict[str, Any], int]:
    """The header, and where the data after it begins."""
    length = int(file.read(0, 8).view("<u8")[0]) if file.size >= 8 else None
    if length is None or length > min(LONGEST_HEADER, file.size - 8):
        raise UserError(f"{file.path} is not a safetensors file, or is cut short: get it again")
    try:
        text = file.read(8, 8 + length).tobytes().decode()
        header = json.loads(text, object_pairs_hook=_once)
        if not isinstance(header, dict):
            raise ValueError("it is not a JSON object")
        notes = header.get("__metadata__", {})
        if not isinstance(notes, dict) or not all(isinstance(n, str) for n in notes.values()):
            raise ValueError("its __metadata__ is not of names and strings")
        return header, 8 + length
    except (ValueError, RecursionError) as error:
        _damaged(file, error)


def _damaged(file: File, error: Exception) -> NoReturn:
    reason = " ".join(str(error).split())[:100]
    raise UserError(
        f"{file.path} has a damaged safetensors header ({reason}): get it again"
    ) from None


def _entry(value: dict[str, Any]) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    if value["dtype"] not in DTYPES:
        raise ValueError(f"dtype {value['dtype']} is not one of {', '.join(DTYPES)}")
    start, stop = value["data_offsets"]
    shape = tuple(value["shape"])
    if any(type(number) is not int or number < 0 for number in (*shape, start, stop)):
        raise ValueError(f"shape {shape} and offsets {start}, {stop} must be whole numbers")
    return DTYPES[value["dtype"]], shape, start, stop


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused where it has a name twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def write(path: Path, found: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `found` as one file, reading one tensor at a time."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in found.items():
        header[name] = {
            "dtype": NAME_OF[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.bytes],
        }
        end += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for aligned data
    with path.open("xb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in found.values():
            array = contiguous(tensor.read())
            out.write(array.reshape(-1).view(np.uint8).data)
