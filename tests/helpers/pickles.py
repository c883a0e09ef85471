"""PyTorch's pickles by hand, so that they can say what torch never would; and how they are read."""

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gptj.convert.pickled import tensors
from gptj.errors import UserError
from gptj.files import File


def opened(path: Path) -> File:
    return File(str(path), path.stat().st_size)


def read_all(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in tensors(opened(path)).items()}


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def numbers(values: tuple[int, ...]) -> bytes:
    return group(*map(number, values))


NO_HOOKS = name_of("collections", "OrderedDict") + b")R"


def storage(key: str = "0", kind: str = "FloatStorage", count: int = 6) -> bytes:
    dtype = name_of("torch", kind)
    return group(text("storage"), dtype, text(key), text("cpu"), number(count)) + b"Q"


def tensor(offset=0, shape=(2, 3), strides=(3, 1), of=None, extra=(NO_HOOKS,)) -> bytes:
    view = (number(offset), numbers(shape), numbers(strides))
    call = group(of or storage(), *view, b"\x89", *extra)
    return name_of("torch._utils", "_rebuild_tensor_v2") + call + b"R"


def program(**items: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(text(k) + v for k, v in items.items()) + b"u."


SIX = np.arange(6, dtype=np.float32)
ONE_STORAGE = (("0", SIX.tobytes()),)


def write(path: Path, code: bytes, data=ONE_STORAGE, more=(), **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("any/data.pkl", code)
        for key, stored in data:
            archive.writestr(f"any/data/{key}", stored)
        for name, content in more:
            archive.writestr(name, content)
    return path


def refuse(path: Path, *said: str) -> None:
    with pytest.raises(UserError) as caught:
        tensors(opened(path))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    missing = [word for word in said if word not in message]
    assert not missing, f"{missing} not in {message}"
