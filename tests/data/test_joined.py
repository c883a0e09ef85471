"""Numbers in several files, read as one array: as NumPy reads them joined."""

import itertools
import tempfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.data.joined import Joined, Run
from gptj.files import File

DTYPE = np.dtype("<u2")
NAMES = itertools.count()


@pytest.fixture(scope="module")
def held():
    """Makes runs of given sizes, of 0, 1, 2, ... in turn: on disk, or as if far away."""
    memory = fsspec.filesystem("memory")

    def make(sizes: list[int], far: bool, more: int = 0) -> list[Run]:
        runs, begin = [], 0
        for size in sizes:
            name = str(next(NAMES))
            ids = np.arange(begin, begin + size + more, dtype=DTYPE)
            path = f"/joined/{name}" if far else str(Path(folder, name))
            memory.pipe(path, ids.tobytes()) if far else ids.tofile(path)
            runs.append(Run(File(path, ids.nbytes, memory if far else None), DTYPE, size))
            begin += size
        return runs

    with tempfile.TemporaryDirectory() as folder:
        yield make


SIZES = st.lists(st.integers(0, 4), min_size=1, max_size=5)


@given(sizes=SIZES, far=st.booleans(), plus=st.integers(-2, 2), data=st.data())
@settings(deadline=None, max_examples=60)
def test_any_part_is_what_numpy_reads_of_all(held, sizes, far, plus, data):
    total = sum(sizes)
    whole, joined = np.arange(total) + plus, Joined(held(sizes, far), plus=plus)
    assert len(joined) == joined.size == total
    assert np.asarray(joined).tolist() == whole.tolist()
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(0, total))
    assert joined[start:stop].tolist() == whole[start:stop].tolist()
    assert joined[start:].tolist() == whole[start:].tolist()
    assert joined[-2:].tolist() == whole[-2:].tolist()
    if start < total:
        assert joined[start] == whole[start]
        assert type(joined[start]) is int


@given(sizes=SIZES, far=st.booleans(), plus=st.integers(-2, 2), data=st.data())
@settings(deadline=None, max_examples=60)
def test_windows_are_parts_of_one_length_across_files_too(held, sizes, far, plus, data):
    total = sum(sizes)
    joined = Joined(held(sizes, far), plus=plus)
    length = data.draw(st.integers(1, max(1, total)))
    starts = data.draw(st.lists(st.integers(0, max(0, total - length)), max_size=6))
    starts = np.array(starts if total else [], np.int64)
    expected = starts[:, None] + np.arange(length) + plus
    assert joined.windows(starts, length).tolist() == expected.tolist()
    shaped = joined.windows(starts[None, :, None], length)
    assert shaped.shape == (1, len(starts), 1, length)
    assert shaped.dtype == np.int64


@given(sizes=SIZES, one=st.integers(-3, 3), other=st.integers(-3, 3), data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_view_of_a_view_is_a_part_of_a_part(held, sizes, one, other, data):
    total = sum(sizes)
    whole = np.arange(total)
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, total)] * 2)))
    outer = Joined(held(sizes, False)).view(begin, end, plus=one)
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, end - begin)] * 2)))
    inner = outer.view(first, last, plus=other)
    expected = whole[begin:end][first:last] + one + other
    assert inner[:].tolist() == expected.tolist()
    if length := len(expected):
        starts = np.arange(length)
        assert inner.windows(starts, 1).tolist() == expected[:, None].tolist()
        assert inner.windows(np.array([0]), length).tolist() == [expected.tolist()]
    both = Joined([inner, outer], 0, len(inner) + len(outer))
    assert both[:].tolist() == [*expected, *(whole[begin:end] + one)]


@pytest.mark.parametrize("far", [False, True])
def test_what_follows_in_a_file_is_not_of_the_run(held, far):
    joined = Joined(held([3, 2], far, more=7))
    assert joined[:].tolist() == [0, 1, 2, 3, 4]
    assert joined.windows(np.array([1]), 4).tolist() == [[1, 2, 3, 4]]


def test_numbers_are_as_wide_as_in_the_file_but_where_something_is_added(held):
    joined = Joined(held([3], False))
    assert joined.dtype == joined[:].dtype == DTYPE
    assert joined.view(0, 3, plus=1 << 20)[:].tolist() == [1 << 20, (1 << 20) + 1, (1 << 20) + 2]
    assert np.asarray(joined, np.float32).dtype == np.float32


@pytest.mark.parametrize("index", [-1, 5])
def test_there_is_nothing_beyond(held, index):
    with pytest.raises(AssertionError):
        Joined(held([3, 2], False))[index]


def test_steps_are_not_taken(held):
    with pytest.raises(AssertionError):
        Joined(held([3], False))[::2]


@pytest.mark.parametrize("far", [False, True])
def test_a_part_of_several_files_is_read_across_their_borders(held, far):
    joined = Joined(held([3, 2, 4], far), 2, 8, plus=1)
    assert joined[:].tolist() == [3, 4, 5, 6, 7, 8]
    windows = joined.windows(np.array([0, 1, 2, 3]), 3).tolist()
    assert windows == [[3, 4, 5], [4, 5, 6], [5, 6, 7], [6, 7, 8]]
