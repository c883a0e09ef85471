"""NumPy's files of arrays: written as NumPy does, and what a byte's damage does."""

import re
import zipfile

import numpy as np
import pytest

from gptj.convert import npz
from gptj.errors import UserError
from gptj.files import Folder


@pytest.mark.parametrize("shape", [(), (7,), (5, 6), (2, 3, 4), (0, 3)])
def test_every_byte_of_an_array_is_under_its_checksum(shape, tmp_path):
    path, array = tmp_path / "0.npz", np.ones(shape, np.float32)
    with zipfile.ZipFile(path, "x") as archive:
        npz.add(archive, 0, np.zeros(3, np.float32))
        npz.add(archive, 1, array)
        info = archive.getinfo("arr_1.npy")
    content, file = path.read_bytes(), Folder(tmp_path).file("0.npz")
    np.testing.assert_array_equal(npz.arrays(file)[1].read(), array)
    start = content.index(b"\x93NUMPY", info.header_offset)
    for at in range(start, start + info.file_size):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"/0\.npz.*arr_1\.npy"):
            npz.arrays(file)[1].read()
        if len(shape) == 2:
            with pytest.raises(UserError, match=r"/0\.npz.*arr_1\.npy"):
                npz.arrays(file)[1].sample(shape, 2)


def test_they_are_written_byte_for_byte_as_numpy_writes_them(tmp_path):
    draw = np.random.default_rng(0)
    arrays = [
        draw.normal(size=(5, 6)).astype("<f4"),
        np.int32(7),
        draw.normal(size=9).astype("<f2"),
    ]
    np.savez(tmp_path / "theirs.npz", *arrays)
    with zipfile.ZipFile(tmp_path / "ours.npz", "x") as archive:
        for number, array in enumerate(arrays):
            npz.add(archive, number, np.asarray(array))
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "theirs.npz").read_bytes()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.asfortranarray(np.ones((5, 6), np.float32)), "of type float32 in column order, which"),
        (np.ones(3, np.int64), "of type int64, which the original never wrote"),
    ],
)
def test_what_the_original_never_wrote_is_refused(array, said, tmp_path):
    np.savez(tmp_path / "0.npz", array)
    with pytest.raises(UserError, match=f"arr_0.npy is {said}"):
        npz.arrays(Folder(tmp_path).file("0.npz"))


def test_of_other_names_four_are_said(tmp_path):
    np.savez(tmp_path / "0.npz", **{name: np.zeros(1, np.float32) for name in "edcba"})
    said = "holds 'a.npy', 'b.npy', 'c.npy', 'd.npy', ..., not 5 arrays named arr_0"
    with pytest.raises(UserError, match=re.escape(said)):
        npz.arrays(Folder(tmp_path).file("0.npz"))
