"""The safetensors format: what the real library writes and reads, and no damage passes."""

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj import UserError
from gptj.convert import safetensors
from gptj.convert.safetensors import DTYPES, metadata, tensors, write
from gptj.convert.tensor import BFLOAT16, Tensor
from gptj.files import Folder

real = pytest.importorskip("safetensors.numpy")
SafetensorError = pytest.importorskip("safetensors").SafetensorError


def stored(array):
    return Tensor(array.shape, array.dtype, lambda: array)


def opened(path):
    return Folder(path.parent).file(path.name)


def equal(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        other = found[name]
        assert (other.shape, other.dtype) == (array.shape, array.dtype), name
        assert other.tobytes() == array.tobytes(), name


@st.composite
def trees(draw):
    """Arrays of any type, shape and bits by name, some of them empty or of one number."""
    names = st.text(max_size=9).filter(lambda name: name != "__metadata__")
    found = {}
    for name in draw(st.lists(names, max_size=5, unique=True)):
        dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        size = int(np.prod(shape)) * dtype.itemsize
        bits = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
        found[name] = (bits & (1 if dtype.kind == "b" else 255)).view(dtype).reshape(shape)
    return found


@settings(max_examples=100, deadline=None)
@given(trees(), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_theirs_is_read_here_and_ours_there(arrays, notes):
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        write(ours, {name: stored(array) for name, array in arrays.items()}, notes)
        real.save_file(arrays, theirs, notes or None)
        equal(real.load_file(ours), arrays)
        for path in (ours, theirs):
            equal({name: tensor.read() for name, tensor in tensors(opened(path)).items()}, arrays)
            assert metadata(opened(path)) == notes


def test_torch_reads_our_bfloat16(tmp_path):
    torch = pytest.importorskip("torch")
    array = np.random.default_rng(0).normal(size=(5, 7)).astype(BFLOAT16)
    write(tmp_path / "x", {"turned": stored(array.T), "straight": stored(array)}, {"format": "pt"})
    with pytest.importorskip("safetensors").safe_open(tmp_path / "x", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        for name, expected in (("turned", array.T), ("straight", array)):
            found = file.get_tensor(name)
            assert found.dtype == torch.bfloat16
            np.testing.assert_array_equal(found.float().numpy(), expected.astype(np.float32))


def test_a_tensor_is_read_anew_and_is_the_readers_own(tmp_path):
    write(tmp_path / "x", {"a": stored(np.arange(4.0))}, {})
    tensor = tensors(opened(tmp_path / "x"))["a"]
    tensor.read()[:] = 9
    np.testing.assert_array_equal(tensor.read(), np.arange(4.0))


@pytest.mark.parametrize("length", range(1, 9))
def test_the_data_are_aligned(length, tmp_path):
    write(tmp_path / "x", {"n" * length: stored(np.arange(4.0))}, {})
    assert int.from_bytes((tmp_path / "x").read_bytes()[:8], "little") % 8 == 0


def content(header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = entry()
TWICE = b'{"a": %s, "a": %s}' % ((json.dumps(GOOD).encode(),) * 2)
BROKEN = {
    "empty": b"",
    "short": b"\0" * 7,
    "no header": content(b""),
    "huge length": content({}, length=(1 << 64) - 1),
    "long length": content({}, length=11),
    "not JSON": content(b"{'a': 1}"),
    "not UTF-8": content(b'{"\xff": 1}'),
    "UTF-16": content('{"a": 1}'.encode("utf-16")),
    "a list": content([["a", GOOD]]),
    "nothing": content(b"null"),
    "nested": content(b"[" * 100_000),
    "a name twice": content(TWICE),
    "a key twice": content(b'{"a": {"dtype": "F32", "dtype": "F32"}}'),
    "overlap": content({"a": GOOD, "b": entry(offsets=(4, 12))}, b"\0" * 12),
    "the same bytes": content({"a": GOOD, "b": GOOD}),
    "a hole": content({"a": GOOD, "b": entry(offsets=(12, 20))}, b"\0" * 20),
    "a hole first": content({"a": entry(offsets=(4, 12))}, b"\0" * 12),
    "bytes left over": content({"a": GOOD}, b"\0" * 9),
    "negative size": content({"a": entry(shape=(-2,))}),
    "negative sizes": content({"a": entry(shape=(-1, -2))}),
    "negative offset": content({"a": entry(offsets=(-8, 0))}),
    "backwards": content({"a": entry(offsets=(8, 0))}),
    "a fraction": content({"a": entry(shape=(2.0,))}),
    "infinite": content({"a": entry(offsets=(0, float("inf")))}),
    "true": content({"a": entry(shape=(True, 2))}),
    "text": content({"a": entry(shape="2")}),
    "three offsets": content({"a": entry(offsets=(0, 4, 8))}),
    "past the end": content({"a": entry(shape=(3,), offsets=(0, 12))}),
    "other size": content({"a": entry(shape=(3,))}),
    "wrapping": content({"a": entry(shape=(1 << 32, 1 << 32), offsets=(0, 0))}, b""),
    "vast": content({"a": entry(shape=(1 << 99,))}),
    "many digits": content(b'{"a": 1' + b"0" * 5000 + b"}"),
    "unknown type": content({"a": entry("F8_E4M3")}),
    "type of a list": content({"a": entry(["F32"])}),
    "no type": content({"a": {"shape": [2], "data_offsets": [0, 8]}}),
    "no entry": content({"a": 3}),
    "two lines": content({"a\nb": entry(shape=(3,))}),
    "long name": content({"a" * 9000: entry(shape=(3,))}),
    "metadata list": content({"__metadata__": [1], "a": GOOD}),
    "metadata numbers": content({"__metadata__": {"step": 3}, "a": GOOD}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_one_sentence(what, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(BROKEN[what])
    with pytest.raises(UserError) as caught:
        tensors(opened(path))
    text = str(caught.value)
    assert text.startswith(str(path))
    assert text.endswith("get it again")
    assert "\n" not in text
    assert len(text) < 400
    if what != "a name twice":  # of which the real library takes the last
        with pytest.raises(SafetensorError):
            real.load_file(path)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        *((raw, "is not a safetensors file, or") for raw in (b"", b"\0" * 7, b"<html>not found")),
        ((3).to_bytes(8, "little") + b"{}", "is not a safetensors file, or is cut short"),
        (b"\0" * 8, "has a damaged safetensors header"),
    ],
)
def test_what_is_no_such_file_is_said_to_be_none(raw, said, tmp_path):
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(UserError, match=f"/x {said}"):
        tensors(opened(tmp_path / "x"))


def test_a_header_longer_than_a_models_is_not_read(tmp_path, monkeypatch):
    raw = content({"a": GOOD})
    (tmp_path / "x").write_bytes(raw)
    for longest, fits in ((len(raw) - 16, True), (len(raw) - 17, False)):
        monkeypatch.setattr(safetensors, "LONGEST_HEADER", longest)
        with contextlib.nullcontext() if fits else pytest.raises(UserError, match="is not a safe"):
            assert set(tensors(opened(tmp_path / "x"))) == {"a"}


def test_the_header_may_name_them_in_any_order(tmp_path):
    header = {"b": entry(offsets=(8, 16)), "none": entry(shape=(0,), offsets=(8, 8)), "a": GOOD}
    (tmp_path / "x").write_bytes(content(header, np.arange(4, dtype="<f4").tobytes()))
    found = {name: tensor.read() for name, tensor in tensors(opened(tmp_path / "x")).items()}
    equal(real.load_file(tmp_path / "x"), found)
    assert found["b"].tolist() == [2, 3]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_are_refused_or_the_library_takes_them_too(data):
    raw = content({"__metadata__": {"step": "3"}, "a": GOOD, "b": entry("BF16", (1,), (8, 10))})
    damaged = bytearray(raw + b"\0\0")
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(raw) - 9))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(damaged)
        said, found = "", None
        try:
            found = {name: tensor.read() for name, tensor in tensors(opened(path)).items()}
            metadata(opened(path))
        except UserError as error:
            said = str(error)
        assert "\n" not in said
        if not said:
            equal(real.load_file(path), found)
