"""PyTorch's files as torch writes them, read to the bit, and damaged, which is one sentence."""

import contextlib
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gptj import convert
from gptj.convert import pickled
from gptj.convert.pickled import tensors
from gptj.convert.tensor import BFLOAT16, Readers, Tensor
from gptj.errors import UserError
from pickles import (
    SIX,
    opened,
    program,
    read_all,
    refuse,
    storage,
    tensor,
    write,
)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "pytorch_model.bin"


def read_or_refuse(path: Path) -> None:
    """Any other error, and any warning, is a bug."""
    with contextlib.suppress(UserError):
        assert all(type(name) is str for name in read_all(path))


def read_in_strips(found: Tensor, dtype: type) -> np.ndarray:
    out = np.empty(found.shape, dtype)
    with Readers() as readers:
        assert found.read_into(out, readers)() == 0
    return out


class TestDamage:
    @pytest.mark.parametrize(
        "code",
        [
            b"",
            b".",
            b"\x80\x02",
            b"\x80\x63.",
            b"\x80\x02}(u",
            b"\x80\x02}(X\x01\x00\x00\x00wu.",
            b"\x80\x02}(X\xff\xff\xff\xffwu.",
            b"\x80\x02}h\x00.",
            b"\x80\x02U\x00Q.",
            b"\x80\x02)Q.",
            b"\x80\x02K\x01)R.",
            b"\x80\x02ctorch\nFloatStorage\n)R.",
            b"\x80\x04\x95" + b"\xff" * 8 + b".",
            b"\x80\x02c\xff\n\xff\n.",
            b"\x00",
        ],
    )
    def test_a_pickle_that_is_none(self, path, code):
        refuse(write(path, code), "damaged")

    def test_a_number_that_would_be_a_size_of_memory(self, path):
        code = b"\x80\x02}r\xff\xff\xff\x7f" + program(w=tensor())[3:]
        assert read_all(write(path, code)).keys() == {"w"}
        refuse(write(path, b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f."), "damaged")

    def test_a_key_that_would_take_the_stack_or_for_ever(self, path):
        for key in (b")" + b"\x85" * 1_000_000, b")" + b"q\x00h\x00\x86" * 100):
            refuse(write(path, b"\x80\x02}" + key + b"Ns."), "damaged")

    def test_a_pickle_without_end(self, path, monkeypatch):
        monkeypatch.setattr(pickled, "PICKLE_BYTES", 1000)
        refuse(write(path, program(w=tensor()) + b" " * 1000), "data.pkl", "1000 are plenty")

    def test_the_pickles_checksum(self, path):
        content = write(path, program(wxyz=tensor())).read_bytes()
        path.write_bytes(content.replace(b"wxyz", b"wxya"))
        refuse(path, "checksum", "data.pkl")

    def test_a_storages_checksum(self, path):
        whole, part = tensor(), tensor(2, (3,), (1,))
        content = write(path, program(whole=whole, part=part)).read_bytes()
        at = content.index(SIX.tobytes())
        for changed in range(at, at + SIX.nbytes):
            damaged = bytearray(content)
            damaged[changed] ^= 1
            path.write_bytes(damaged)
            found = tensors(opened(path))
            with pytest.raises(UserError) as caught:
                found["whole"].read()
            message = f"{path} is damaged or not what its name says (the checksum of 'any/data/0'"
            assert str(caught.value).startswith(message)
            assert found["part"].read().shape == (3,)  # the sum is of more than is read

    def test_the_checksum_of_a_single_number(self, path):
        code = program(w=tensor(0, (), (), storage(count=1)))
        write(path, code, [("0", b"only")])
        path.write_bytes(path.read_bytes().replace(b"only", b"once"))
        with pytest.raises(UserError, match="the checksum of 'any/data/0' does not match"):
            read_all(path)

    def test_a_storages_checksum_when_it_is_read_in_strips(self, path, monkeypatch):
        monkeypatch.setattr(convert.tensor, "STRIP_BYTES", 1)  # strips of 64 rows: four of them
        stored = np.arange(200 * 6, dtype=np.float32).reshape(200, 6)
        code = program(w=tensor(0, (200, 6), (6, 1), storage(count=stored.size)))
        content = write(path, code, [("0", stored.tobytes())]).read_bytes()
        found = tensors(opened(path))["w"]
        for dtype in (np.float32, np.float64, np.float32):  # whatever was read before
            for _ in range(3):
                np.testing.assert_array_equal(read_in_strips(found, dtype), stored)
        start = content.index(stored.tobytes())
        for at in range(start, start + stored.nbytes, 97):
            damaged = bytearray(content)
            damaged[at] ^= 1 << at % 8
            path.write_bytes(damaged)
            for reader in (read_in_strips, lambda it, _: it.read()):
                with pytest.raises(UserError, match="checksum of 'any/data/0' does not match"):
                    reader(tensors(opened(path))["w"], np.float32)

    def test_a_compressed_entry(self, path):
        write(path, program(w=tensor()), compression=zipfile.ZIP_DEFLATED)
        refuse(path, "any/data", "compressed")

    def test_an_entry_twice(self, path):
        other = write(path, program(w=tensor()), [("0", SIX.tobytes()), ("x", SIX.tobytes())])
        other.write_bytes(other.read_bytes().replace(b"any/data/x", b"any/data/0"))
        refuse(path, "any/data/0", "twice")

    def test_two_pickles(self, path):
        more = [("other/data.pkl", b"}.")]
        refuse(write(path, program(w=tensor()), more=more), "2 files data.pkl")

    def test_another_zip(self, path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("word/document.xml", "<>")
        refuse(path, "0 files data.pkl")

    def test_byte_order(self, path):
        write(path, program(w=tensor()), more=[("any/byteorder", b"little")])
        assert read_all(path).keys() == {"w"}
        refuse(write(path, program(w=tensor()), more=[("any/byteorder", b"big")]), "big-endian")

    @pytest.mark.parametrize(
        "content", [b"", b"P", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x02}."]
    )
    def test_not_a_zip(self, path, content):
        path.write_bytes(content)
        refuse(path, "not a PyTorch checkpoint", f"{len(content)} bytes")

    def test_the_format_before_1_6(self, path):
        path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\x02M\xe9\x03.")
        refuse(path, "before 1.6", "re-save", "safetensors")

    def test_cut_short_anywhere(self, path):
        content = write(path, program(w=tensor())).read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(UserError):
                read_all(path)

    @pytest.mark.parametrize("with_checksums", [True, False])
    def test_any_byte_changed_is_refused_or_harmless(self, path, with_checksums):
        code = program(w=tensor(), t=tensor(1, (3, 2), (1, 2), storage("1")))
        write(path, code, [("0", SIX.tobytes()), ("1", SIX.tobytes())])
        content = bytearray(path.read_bytes())
        if not with_checksums:
            at = content.index(b"PK\x01\x02") + 16
            content[at : at + 4] = bytes(4)
        draw = random.Random(0)
        for at in range(len(content)):
            changed = content.copy()
            changed[at] ^= draw.randrange(1, 256)
            path.write_bytes(changed)
            read_or_refuse(path)


class TestAgainstTorch:
    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch", reason="torch is not installed (`make test` does it)")

    @pytest.fixture
    def same(self, torch, path):
        """Saves a state dict, and checks that what is read is what torch has, to the bit."""

        def check(state, **options) -> dict[str, np.ndarray]:
            torch.save(state, path, **options)
            lazy = tensors(opened(path))
            found = {name: tensor.read() for name, tensor in lazy.items()}
            assert list(found) == list(state)
            for name, value in state.items():
                bits = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
                assert found[name].tobytes() == bits.tobytes()
                assert found[name].shape == lazy[name].shape == tuple(value.shape)
                assert found[name].dtype == lazy[name].dtype
                assert lazy[name].bytes == found[name].nbytes
            return found

        return check

    @pytest.mark.parametrize(
        ("name", "dtype"),
        [
            *((name, np.dtype(name)) for name in ("float16", "float32", "float64", "uint8")),
            *((name, np.dtype(name)) for name in ("int8", "int16", "int32", "int64", "bool")),
            ("bfloat16", BFLOAT16),
        ],
    )
    def test_every_type(self, torch, same, name, dtype):
        values = torch.arange(-6, 6).reshape(3, 4).to(getattr(torch, name))
        assert same({"w": values, "scalar": values[1, 2]})["w"].dtype == dtype

    @pytest.mark.parametrize("name", ["complex64", "float8_e4m3fn", "uint16"])
    def test_types_that_no_model_has(self, torch, path, name):
        torch.save({"w": torch.ones(3).to(getattr(torch, name))}, path)
        refuse(path, "torch.", "safetensors")

    def test_views_of_every_kind(self, torch, same):
        base = torch.randn(4, 6, 5)
        same(
            {
                "whole": base,
                "shared": base,
                "transposed": base.permute(2, 0, 1),
                "offset": base[2:],
                "steps": base[1::2, ::3, 1:4],
                "diagonal": base[0].diagonal(),
                "one": base[3, 5, 4],
                "nothing": base[:, :0],
                "at the end": base.reshape(-1)[120:],
                "empty": torch.empty(0, 3),
            }
        )

    def test_a_storage_shared_is_stored_once(self, torch, same, path):
        big = torch.zeros(100_000)
        same({"a": big, "b": big[5:], "c": big.view(1000, 100).T})
        assert path.stat().st_size < 1.1 * 400_000

    def test_an_expanded_tensor_is_refused_with_the_remedy(self, torch, path):
        torch.save({"w": torch.ones(1).expand(3)}, path)
        refuse(path, "'w'", ".contiguous()")

    def test_a_modules_state_dict_and_its_parameters(self, torch, same):
        module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        state = module.state_dict()
        assert state._metadata
        same(state)
        same(dict(module.named_parameters()))
        same(module.half().state_dict(keep_vars=True))

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_every_protocol(self, torch, same, protocol):
        module = torch.nn.Linear(300, 2)
        same(module.state_dict(), pickle_protocol=protocol)
        same(dict(module.named_parameters()), pickle_protocol=protocol)

    def test_many_tensors(self, torch, same):
        same({f"layer.{i}": torch.full((2,), i) for i in range(2500)})

    def test_a_file_without_checksums(self, torch, same):
        torch.serialization.set_crc32_options(False)
        try:
            same(torch.nn.Linear(3, 4).state_dict())
        finally:
            torch.serialization.set_crc32_options(True)

    def test_whole_checkpoints_are_not_guessed_at(self, torch, path):
        state = torch.nn.Linear(3, 4).state_dict()
        torch.save({"epoch": 3, "loss": 0.5, "model": state, "steps": [1, None, True]}, path)
        refuse(path, "'epoch'", "state_dict() by itself")
        torch.save(torch.nn.Linear(3, 4), path)
        refuse(path, "torch.nn.modules.linear.Linear", "would run code")

    def test_the_old_format(self, torch, path):
        torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
        refuse(path, "before 1.6")

    def test_any_byte_changed_is_refused_or_harmless(self, torch, path):
        torch.save(torch.nn.Linear(3, 4).state_dict(), path)
        content, draw = path.read_bytes(), random.Random(1)
        for _ in range(500):
            changed = bytearray(content)
            for _ in range(draw.randrange(1, 4)):
                changed[draw.randrange(len(changed))] = draw.randrange(256)
            path.write_bytes(changed)
            read_or_refuse(path)
