"""PyTorch's `.bin` and `.pt` checkpoints, read without PyTorch and without running them.

Such a file is a zip archive. `data.pkl` in it is a pickle: a program for a small stack machine,
which builds the dictionary of tensors. `data/0`, `data/1`, ... are the storages, plain bytes that
the tensors are views of.

A pickle can call anything that can be imported, so none is run here as it is: the machine knows
the few instructions that a state dict needs, and the few names it calls stand for functions of
this module that do nothing but note down their arguments.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Shaped

from gptj.convert import zipped
from gptj.convert.tensor import BFLOAT16, Tensor
from gptj.convert.zipped import Entry, damaged, short
from gptj.errors import UserError
from gptj.files import File

PICKLE_BYTES = 64 << 20
"""The largest `data.pkl` that is read; that of a 6B model has about 50 KB."""

MAX_DIMS = 64
"""The most dims that NumPy, and PyTorch, give an array."""

LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""The number with which files began before they were zip archives, as a pickle writes it."""

STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": BFLOAT16,
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


def tensors(file: File) -> dict[str, Tensor]:
    """The tensors of a state dict that `torch.save` wrote, by name and in its order, not read yet.

    Reads the archive's directory and the pickle. A tensor's own bytes are read when it is, and
    their checksum compared, unless the tensor is only a part of its storage: the checksum is of
    the whole, which would have to be read for it.

    Raises:
      UserError: the file is damaged, cut short or in the format from before PyTorch 1.6; it would
        run code; it holds something other than names and tensors; or a tensor reaches outside
        its storage. Reading a tensor raises it if the file is damaged there.
    """
    _expect_zip(file)
    entries = zipped.entries(file)
    root = _root(file, entries)
    byteorder = entries.get(f"{root}/byteorder")
    if byteorder is not None and byteorder.content(16).strip() != b"little":
        raise UserError(
            f"{file.path} was saved on a big-endian machine, which is not supported: re-save it on "
            "a little-endian one, or use the safetensors files of the same model"
        )
    program = entries[f"{root}/data.pkl"].content(PICKLE_BYTES)
    views = _state_dict(file, _run(file, program))
    return {name: _tensor(file, entries, root, name, view) for name, view in views.items()}


def _expect_zip(file: File) -> None:
    head = file.read(0, min(file.size, 32)).tobytes()
    if LEGACY_MAGIC in head:
        raise UserError(
            f"{file.path} was saved by PyTorch before 1.6, in a format that cannot be read safely: "
            "re-save it with a newer one, or use the safetensors files of the same model"
        )
    if not head.startswith(b"PK\x03\x04"):
        raise UserError(
            f"{file.path} is not a PyTorch checkpoint ({file.size} bytes, and not a zip archive): "
            "download or copy it again"
        )


def _root(file: File, entries: dict[str, Entry]) -> str:
    """The folder of the archive that everything is in, which torch.save names after the file."""
    found = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) != 1:
        raise UserError(
            f"{file.path} is a zip archive with {len(found)} files data.pkl, and a PyTorch "
            "checkpoint has one: give a file that torch.save wrote"
        )
    return found[0].removesuffix("/data.pkl")


@dataclass(frozen=True)
class _Storage:
    """What a pickle says of a storage: `count` elements, in the archive's file `data/key`."""

    dtype: np.dtype[Any]
    key: str
    count: int


@dataclass(frozen=True)
class _View:
    """What a pickle says of a tensor; offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _is_counts(values: Any) -> bool:
    return type(values) is tuple and all(type(value) is int for value in values)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _View:
    _, *extras = rest
    # Hooks would be lost; metadata marks a view that is to be negated or conjugated.
    if not isinstance(storage, _Storage) or any(extras):
        raise ValueError("a tensor that is not a plain view of a storage")
    if not (_is_counts((offset,)) and _is_counts(shape) and _is_counts(strides)):
        raise ValueError("a tensor whose shape is not integers")
    return _View(storage, offset, shape, strides)


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): lambda: {},
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}
"""Every name a state dict's pickle may mention, and what stands for it here."""

INSTRUCTIONS = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK),
    *(pickle.MEMOIZE, pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT),
    *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID, pickle.REDUCE),
)
"""The instructions taken as Python defines them. Left out are those that set attributes, make
objects in other ways, or are not written by pickle protocol 2 and later for a state dict."""


# The unpickler in C would take a number out of a damaged file for how much memory to ask for, and
# overflows its stack when a key is deeply nested; the one in Python does neither.
class _Machine(pickle._Unpickler):
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: File, program: bytes) -> None:
        super().__init__(io.BytesIO(program))
        self._path = file.path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise UserError(
                f"{self._path} calls {short(f'{module}.{name}')}, which a plain state dict does "
                "not: it would run code and is not loaded; use the safetensors files of the same "
                "model"
            )
        return KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count = pid
        if kind != "storage" or type(key) is not str or not isinstance(dtype, np.dtype):
            raise ValueError("a reference to something other than a storage")
        if not _is_counts((count,)):
            raise ValueError("a storage whose length is not an integer")
        return _Storage(dtype, key, count)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put(key, value)

    def set_items(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._put(key, value)

    def _put(self, key: object, value: object) -> None:
        target = self.stack[-1]
        if type(target) is not dict or not isinstance(key, str | int):
            raise ValueError("an item that is not a dict's")
        if key in target:
            raise ValueError(f"{short(key)} twice")
        target[key] = value

    def ignore_state(self) -> None:
        # A state dict's `_metadata`: the versions of the modules that it came from.
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise ValueError("attributes of something other than a dict")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in INSTRUCTIONS},
        pickle.SETITEM[0]: set_item,
        pickle.SETITEMS[0]: set_items,
        pickle.BUILD[0]: ignore_state,
    }


def _run(file: File, program: bytes) -> object:
    try:
        return _Machine(file, program).load()
    except UserError:
        raise
    except Exception as error:
        damaged(file, error)


def _state_dict(file: File, found: object) -> dict[str, _View]:
    if not isinstance(found, dict):
        raise UserError(
            f"{file.path} holds a {type(found).__name__.strip('_')}, not a state dict: save "
            "model.state_dict()"
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, _View):
            raise UserError(
                f"{file.path}: {short(name)} is not the name of a tensor, so this is not a plain "
                "state dict: save model.state_dict() by itself"
            )
    return found


def _tensor(file: File, entries: dict[str, Entry], root: str, name: str, view: _View) -> Tensor:
    storage = view.storage
    entry = entries.get(f"{root}/data/{storage.key}")
    if entry is None:
        damaged(file, f"the data of {short(name)} is missing")
    if storage.count * storage.dtype.itemsize != entry.size:
        damaged(
            file,
            f"the data of {short(name)} should be {storage.count} numbers of "
            f"{storage.dtype.itemsize} bytes, and has {entry.size} bytes",
        )
    reach, size = _reach(file, name, view), storage.dtype.itemsize
    is_whole, no_head = 0 < reach == storage.count, np.empty(0, np.uint8)
    if is_whole and view.strides == (*view.shape[1:], 1):
        return zipped.array(entry, view.shape, storage.dtype, no_head)
    whole = zipped.array(entry, (storage.count,), storage.dtype, no_head)

    def read() -> Shaped[np.ndarray, "..."]:
        if not reach:
            return np.empty(view.shape, storage.dtype)
        start = entry.start + view.offset * size
        part = whole.read() if is_whole else file.read(start, start + reach * size)
        strides = [stride * size for stride in view.strides]
        return np.lib.stride_tricks.as_strided(part.view(storage.dtype), view.shape, strides)

    return Tensor(view.shape, storage.dtype, read)


def _reach(file: File, name: str, view: _View) -> int:
    """How many of the storage's elements, from the offset on, the tensor's lie among.

    Raises:
      UserError: they do not lie within the storage, or are more than it has.
    """
    count, numbers = view.storage.count, (view.offset, *view.shape, *view.strides)
    if len(view.shape) != len(view.strides) or len(view.shape) > MAX_DIMS or min(numbers) < 0:
        damaged(file, f"{short(name)} has an impossible shape")
    elements = math.prod(view.shape)
    # Of an empty tensor NumPy needs the other dims' product to fit in memory all the same.
    if math.prod(size or 1 for size in view.shape) * view.storage.dtype.itemsize >= 1 << 63:
        damaged(file, f"{short(name)} has an impossible shape")
    steps = zip(view.shape, view.strides, strict=True)
    reach = 1 + sum((size - 1) * stride for size, stride in steps) if elements else 0
    if view.offset + reach > count:
        damaged(file, f"{short(name)} reaches outside its storage of {count} numbers")
    if elements > count:
        raise UserError(
            f"{file.path}: {short(name)} has {elements} elements in a storage of {count}, so it "
            "repeats them: re-save it after .contiguous()"
        )
    return reach
