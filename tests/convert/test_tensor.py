"""Tensors in files: whichever way one is viewed and read, and past the cache or not, one array."""

import itertools
import threading
import time

import ml_dtypes
import numpy as np
import pytest

from gptj import files
from gptj.convert.tensor import (
    THREADS,
    Matrix,
    Readers,
    Tensor,
    _as_transposed,
    contiguous,
    count_nans,
    stored_at,
)  # fmt: skip
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
    for one in (turned, held(array.T)):  # in strips, and whole
        assert nans_read_into(np.empty((70, 64), dtype), one) == 2
    for at in ((1, 1), (2, 2)):  # one of either sign, without the other
        array[at] = 0
        assert count_nans(array) == 1
        array[at] = np.nan * (1 if at == (1, 1) else -1)
    assert count_nans(np.empty((0, 3), dtype)) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_where_all_are_numbers_none_is_asked_by_itself(dtype, monkeypatch):
    monkeypatch.delattr(np, "isnan")
    for value in (0, 1, -1, 65504, -65504, np.inf, -np.inf):
        assert count_nans(np.full((2, 3), value, dtype)) == 0


def held(array, **options) -> Tensor:
    return Tensor(array.shape, array.dtype, lambda: array.copy(), **options)


class TestCast:
    def test_to_its_own_type_is_itself(self):
        one = held(np.ones(3, np.float16))
        assert one.cast(np.dtype(np.float16), "a") is one
        other = one.cast(np.dtype(np.float32), "a")
        assert (other.dtype, other.bytes, other.read().dtype) == (np.float32, 12, np.float32)

    def test_it_rounds_to_nearest(self):
        array = np.array([1 + 2**-9, 1 + 3 * 2**-9], np.float32)  # bfloat16 has steps of 2**-7
        narrow = held(array).cast(np.dtype(ml_dtypes.bfloat16), "a").read()
        assert narrow.astype(np.float32).tolist() == [1, 1 + 2**-7]

    @pytest.mark.parametrize("largest", [65504, 65519])  # what rounds to the largest there is
    def test_the_largest_of_float16_is_one(self, largest):
        array = np.array([largest, -largest, np.inf], np.float32)
        assert held(array).cast(np.dtype(np.float16), "a").read().tolist() == [
            65504,
            -65504,
            np.inf,
        ]

    @pytest.mark.parametrize("beyond", [65520, -1e30])
    def test_beyond_it_is_refused_and_an_infinity_that_was_there_is_not(self, beyond):
        array = np.array([beyond, np.inf], np.float32)
        narrow = held(array).cast(np.dtype(np.float16), "blocks.0.query")
        with pytest.raises(UserError, match=r"^blocks\.0\.query holds numbers beyond float16's"):
            narrow.read()
        wide = held(np.array([1e300])).cast(np.dtype(np.float32), "a")
        assert wide.read().tolist() == [np.inf]


class TestSample:
    ARRAY = np.arange(70, dtype=np.float32).reshape(7, 10)

    @pytest.mark.parametrize(
        ("most", "rows", "columns"),
        [
            (1, [0], [0]), (2, [0, 3], [0, 5]), (3, [0, 2, 4], [0, 3, 6]),
            (7, range(7), [0, 1, 2, 4, 5, 7, 8]), (8, range(7), [0, 1, 2, 3, 5, 6, 7, 8]),
            (99, range(7), range(10)),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("way", ["memory", "file", "turned", "reshaped", "checked"])
    def test_is_where_rows_and_columns_evenly_spread_cross(
        self, tmp_path, most, rows, columns, way
    ):
        (tmp_path / "file").write_bytes(self.ARRAY.tobytes())
        file = File(str(tmp_path / "file"), 280)
        tensor = stored_at(file, 0, (7, 10), self.ARRAY.dtype)
        expected = self.ARRAY[np.ix_(list(rows), list(columns))]
        if way == "turned":
            turned = tensor.viewed((10, 7), turned=True)
            np.testing.assert_array_equal(turned.sample((10, 7), most), expected.T)
            return
        if way == "memory":
            tensor = held(self.ARRAY)
        if way == "reshaped":
            tensor = stored_at(file, 0, (10, 7), self.ARRAY.dtype).viewed((7, 10))
        if way == "checked":
            matrix = Matrix((7, 10), lambda *_: None, checked=True)  # whose rows all must be read
            tensor = held(self.ARRAY, matrix=matrix)
        np.testing.assert_array_equal(tensor.sample((7, 10), most), expected)

    def test_reads_no_other_rows(self):
        asked = []

        def rows(begin, end, _):
            asked.append((begin, end))
            return self.ARRAY[begin:end]

        tensor = Tensor((7, 10), self.ARRAY.dtype, lambda: None, Matrix((7, 10), rows))
        tensor.sample((7, 10), 3)
        assert asked == [(0, 1), (2, 3), (4, 5)]
        tensor.viewed((10, 7), turned=True).sample((10, 7), 2)
        assert asked[3:] == [(0, 1), (3, 4)]


def test_a_changed_tensor_is_changed_when_it_is_read():
    asked = []
    one = held(np.arange(3)).changed((6,), lambda x: asked.append(1) or np.concatenate([x, x]))
    assert (one.shape, one.bytes, asked) == ((6,), 48, [])
    assert one.read().tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
def test_whole_numbers_are_all_numbers(dtype):
    assert count_nans(np.ones((2, 3), dtype)) == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 4), (2, 1, 1), (0, 3, 2)])
def test_any_view_of_memory_is_copied_as_it_is(order, shape):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape).transpose(order)
    found = contiguous(array)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, array)
    assert (found is array) == array.flags.c_contiguous


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (1, 2, 3)])
def test_only_a_matrix_is_read_in_parts(tmp_path, shape):
    array, tensor = stored(tmp_path / "file", shape, np.float32)
    assert (tensor.matrix is not None) == (len(shape) == 2)
    out = np.empty(shape, np.float32)
    assert nans_read_into(out, tensor) == 0
    np.testing.assert_array_equal(out, array)


@pytest.mark.parametrize(
    ("rows", "columns", "height"),
    [(4097, 64, 4096), (513, 4096, 512), (2049, 1000, 2048), (65, 100_000, 64), (3, 0, 4096)],
)
@pytest.mark.parametrize("turned", [False, True])
def test_strips_are_of_8_mib_of_what_they_become_in_whole_lines_and_4096_at_most(
    rows, columns, height, turned
):
    asked = []

    def read(begin, end, _):
        asked.append((begin, end))
        return np.broadcast_to(np.float16(1), (end - begin, columns))

    matrix = Matrix((rows, columns), read, turned)
    shape = (columns, rows) if turned else (rows, columns)
    out = np.zeros(shape, np.float32)
    tensor = Tensor(shape, np.dtype(np.float16), lambda: None, matrix)
    assert nans_read_into(out, tensor) == 0
    assert (out == 1).all()
    cuts = [*range(0, rows, height), rows]
    assert sorted(asked) == list(itertools.pairwise(cuts))


class TestReaders:
    """What threads have not begun when an error comes is not begun; without one all is done."""

    def test_an_error_ends_what_has_not_begun(self):
        begun, later = [], []

        def busy():
            limit = time.monotonic() + 20
            while not (later and later[-1].cancelled()) and time.monotonic() < limit:
                time.sleep(0.002)

        def fail():
            with Readers() as readers:
                for _ in range(THREADS):
                    readers.submit(busy)
                later.extend(readers.submit(begun.append, n) for n in range(9))
                raise ValueError("stop")

        with pytest.raises(ValueError, match="stop"):
            fail()
        assert (begun, all(one.cancelled() for one in later)) == ([], True)

    def test_without_one_all_is_done(self):
        done, gate = [], threading.Event()
        with Readers() as readers:
            for _ in range(THREADS):
                readers.submit(gate.wait, 20)
            for number in range(9):
                readers.submit(done.append, number)
            threading.Timer(0.05, gate.set).start()
        assert sorted(done) == list(range(9))


def test_a_transposed_matrix_is_seen_as_one_and_never_copied():
    array = np.arange(30.0).reshape(5, 6)
    for view, shape in ((array.T, (6, 5)), (array.T.reshape(2, 3, 5), (6, 5))):
        found = _as_transposed(view)
        assert found.shape == shape
        assert np.shares_memory(found, array)
        np.testing.assert_array_equal(found.reshape(view.shape), view)
    for other in (array, array[:, ::2], array[::2].T, array[:, :1].copy(), array[0], array[0, 0]):
        assert _as_transposed(other) is None
