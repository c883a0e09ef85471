"""NumPy's files of arrays: what a byte's damage does; the rest is told by those who use them."""

import zipfile

import numpy as np
import pytest

from gptj.convert import npz
from gptj.errors import UserError
from gptj.files import Folder


@pytest.mark.parametrize("shape", [(), (7,), (5, 6), (2, 3, 4)])
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
