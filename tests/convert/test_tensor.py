"""Tensors in files: whichever way one is viewed and read, and past the cache or not, one array."""

import ml_dtypes
import numpy as np
import pytest

from gptj import files
from gptj.convert.tensor import Readers, contiguous, count_nans, stored_at
from gptj.errors import UserError
from gptj.files import File

OFFSET = 5000  # not a multiple of a block


def stored(path, shape, dtype):
    """An array in a file, and the tensor that is still there."""
    draw = np.random.default_rng(0).normal(size=shape).astype(dtype)
    path.write_bytes(bytes(OFFSET) + draw.tobytes() + b"rest")
    return draw, stored_at(File(str(path), path.stat().st_size), OFFSET, shape, draw.dtype)


def nans_read_into(out, tensor):
    with Readers() as readers:
        return tensor.read_into(out, readers)()


def views(tensor, rows, columns):
    yield tensor
    yield tensor.viewed((rows, 2, columns // 2))
    yield tensor.viewed((columns, rows), turned=True)
    heads = tensor.viewed((2, columns // 2, rows), turned=True)
    yield heads
    yield heads.viewed((columns, rows))
    yield heads.viewed((columns, rows)).viewed((rows, columns), turned=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("size", [(3, 4), (200, 66), (130, 4096), (600, 8192)])
@pytest.mark.parametrize("direct", [False, True])
def test_read_into_is_read(tmp_path, monkeypatch, dtype, size, direct):
    if direct:  # so that any file counts as large, and any read
        monkeypatch.setattr(files.os, "sysconf", lambda _: 1)
        monkeypatch.setattr(files, "DIRECT_READS", 1)
    array, tensor = stored(tmp_path / "file", size, dtype)
    np.testing.assert_array_equal(tensor.read(), array)
    for view in views(tensor, *size):
        read = view.read()
        assert read.shape == view.shape
        np.testing.assert_array_equal(contiguous(read), read)
        for out in (dtype, np.float32):
            into = np.empty(view.shape, out)
            assert nans_read_into(into, view) == 0
            np.testing.assert_array_equal(into, read.astype(out))


def test_a_file_cut_short_under_its_readers_is_an_error(tmp_path):
    _, tensor = stored(tmp_path / "file", (5000, 64), np.float32)
    (tmp_path / "file").write_bytes(b"short")
    with pytest.raises(UserError, match="shorter while it was read"):
        nans_read_into(np.empty(tensor.shape, tensor.dtype), tensor)


def test_a_disk_that_cannot_be_read_directly_is_read_as_usual(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "sysconf", lambda _: 1)
    monkeypatch.setattr(files, "DIRECT_READS", 1)

    def fails(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(File, "_read_direct", fails)
    array, tensor = stored(tmp_path / "file", (8, 8), np.float32)
    np.testing.assert_array_equal(tensor.read(), array)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_nan_is_counted_and_no_infinity(tmp_path, dtype):
    array = np.zeros((64, 70), dtype)
    assert count_nans(array) == 0
    array[0, :3] = np.inf, -np.inf, np.finfo(np.float16).max
    assert count_nans(array) == 0
    array[1, 1] = np.nan
    array[2, 2] = -np.array(np.nan, dtype)
    assert count_nans(array) == 2
    (tmp_path / "file").write_bytes(array.tobytes())
    tensor = stored_at(File(str(tmp_path / "file"), array.nbytes), 0, array.shape, array.dtype)
    turned = tensor.viewed((70, 64), turned=True)
    assert nans_read_into(np.empty((70, 64), dtype), turned) == 2
