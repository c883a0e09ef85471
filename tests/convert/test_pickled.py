"""PyTorch's pickles by hand: read as they say, refused where they lie, and never run."""

import builtins
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from gptj.convert import pickled
from gptj.convert.pickled import tensors
from gptj.errors import UserError
from gptj.files import File
from pickles import (
    NO_HOOKS,
    SIX,
    group,
    name_of,
    number,
    opened,
    program,
    read_all,
    refuse,
    storage,
    tensor,
    text,
    write,
)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "pytorch_model.bin"


class TestByHand:
    def test_what_the_pickle_says_is_what_is_read(self, path):
        found = read_all(write(path, program(w=tensor())))
        np.testing.assert_array_equal(found["w"], SIX.reshape(2, 3))

    def test_nothing_but_the_directory_and_the_pickle_is_read_at_first(self, path, monkeypatch):
        big = np.zeros(1 << 20, np.float32)
        code = program(w=tensor(0, (4,), (1,), storage(count=big.size)))
        file = opened(write(path, code, [("0", big.tobytes())]))
        counted, plainly = [], File.read

        def counting(self, start=0, stop=None):
            part = plainly(self, start, stop)
            counted.append(len(part))
            return part

        monkeypatch.setattr(File, "read", counting)
        found = tensors(file)["w"]
        assert found.shape == (4,)
        assert found.dtype == np.float32
        assert sum(counted) < 100_000
        counted.clear()
        found.read()
        assert counted == [30, 16]

    @pytest.mark.parametrize(
        ("shape", "strides", "in_parts"),
        [((2, 3), (3, 1), True), ((3, 2), (1, 3), False), ((6,), (1,), False)],
    )
    def test_a_matrix_as_it_is_stored_can_be_read_in_parts(self, path, shape, strides, in_parts):
        found = tensors(opened(write(path, program(w=tensor(0, shape, strides)))))["w"]
        assert (found.matrix is not None) == in_parts

    @pytest.mark.parametrize(("shape", "count"), [((1,) * 64, 6), ((0, 2**60), 6), ((), 1)])
    def test_of_any_shape_there_can_be(self, path, shape, count):
        code = program(w=tensor(0, shape, (1,) * len(shape), storage(count=count)))
        found = read_all(write(path, code, [("0", SIX[:count].tobytes())]))
        assert (found["w"].shape, found["w"].sum()) == (shape, 0)

    @pytest.mark.parametrize(
        ("offset", "shape", "strides"),
        [(2, (2, 2), (2, 1)), (1, (3,), (2,)), (0, (3, 2), (1, 3)), (6, (0,), (1,)), (5, (), ())],
    )
    def test_a_view_is_what_numpy_makes_of_it(self, path, offset, shape, strides):
        found = read_all(write(path, program(w=tensor(offset, shape, strides))))["w"]
        steps = [4 * stride for stride in strides]
        expected = np.lib.stride_tricks.as_strided(SIX[offset:], shape, steps)
        np.testing.assert_array_equal(found, expected, strict=True)

    def test_metadata_is_left_out(self, path):
        assert read_all(write(path, program(w=tensor())[:-1] + b"}b.")).keys() == {"w"}

    def test_a_remote_file(self, path):
        class Remote:
            def cat_file(self, place, start, end):
                return Path(place).read_bytes()[start:end]

        write(path, program(w=tensor()))
        found = tensors(File(str(path), path.stat().st_size, Remote()))
        np.testing.assert_array_equal(found["w"].read(), SIX.reshape(2, 3))

    def test_the_array_is_the_callers_own(self, path):
        found = tensors(opened(write(path, program(w=tensor()))))["w"]
        found.read()[:] = 7
        np.testing.assert_array_equal(found.read(), SIX.reshape(2, 3))


class TestWhatWouldRun:
    @pytest.fixture
    def marker(self, tmp_path):
        made = tmp_path / "marker"
        yield made
        assert not made.exists()

    def test_a_call_of_the_shell(self, path, marker):
        class Shell:
            def __reduce__(self):
                return os.system, (f"touch {marker}",)

        write(path, pickle.dumps({"w": Shell()}))
        refuse(path, f"{os.system.__module__}.system", "would run code", "safetensors")

    @pytest.mark.parametrize("protocol", range(6))
    def test_eval_in_every_protocol(self, path, marker, protocol):
        class Eval:
            def __reduce__(self):
                return builtins.eval, (f"open({str(marker)!r}, 'w')",)

        refuse(write(path, pickle.dumps({"w": Eval()}, protocol)), str(path))

    def test_a_chain_of_getattr(self, path):
        start = name_of("builtins", "getattr") + group(NO_HOOKS, text("__class__")) + b"R"
        refuse(write(path, program(w=start)), "builtins.getattr", "would run code")

    @pytest.mark.parametrize(
        ("module", "name"),
        [
            ("collections", "OrderedDict.fromkeys"),
            ("collections", "OrderedDict.__init__.__globals__"),
            ("torch", "FloatStorage.__class__"),
            ("torch._utils", "_rebuild_tensor_v2.__globals__"),
            ("torch._utils", "_rebuild_tensor_v3"),
            ("torch.storage", "_load_from_bytes"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("__main__", "FloatStorage"),
            ("gptj.convert.pickled", "tensors"),
            ("a\nb", "c" * 1000),
        ],
    )
    def test_any_other_name(self, path, module, name):
        code = b"\x80\x04" + text(module) + text(name) + b"\x93."
        refuse(write(path, code), "would run code")

    def test_a_name_of_the_extension_registry(self, path):
        refuse(write(path, b"\x80\x02\x82\x01."), "damaged")

    def test_attributes_are_set_on_nothing(self, path):
        state = b"}" + text("__module__") + text("mine") + b"s"
        for target in (name_of("torch._utils", "_rebuild_tensor_v2"), tensor()):
            refuse(write(path, program(w=target + state + b"b")), "damaged")
            refuse(write(path, program(w=target + b"N" + state + b"\x86b")), "damaged")
        assert pickled._rebuild_tensor.__module__ == "gptj.convert.pickled"

    @pytest.mark.parametrize("code", [b"i", b"o", b"\x81", b"\x92"])
    def test_other_ways_to_make_an_object(self, path, code):
        made = {b"i": b"(icollections\nOrderedDict\n", b"o": b"(" + NO_HOOKS[:-2] + b"o"}
        item = made.get(code, NO_HOOKS[:-2] + b")" + b"}" * (code == b"\x92") + code)
        refuse(write(path, program(w=item)), "damaged")


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        ("offset", "shape", "strides"),
        [
            (1, (2, 3), (3, 1)),
            (0, (2, 3), (4, 1)),
            (0, (7,), (1,)),
            (6, (1,), (1,)),
            (6, (), ()),
            (7, (0,), (1,)),
            (0, (2,), (2**62,)),
            (2**64, (1,), (1,)),
            (2**62, (1,), (1,)),
        ],
    )
    def test_a_view_outside_its_storage(self, path, offset, shape, strides):
        write(path, program(w=tensor(offset, shape, strides)))
        refuse(path, "'w'", "outside its storage")

    @pytest.mark.parametrize(
        ("offset", "shape", "strides"),
        [
            (-1, (2,), (1,)),
            (0, (-2,), (1,)),
            (0, (-2, -3), (3, 1)),
            (5, (2,), (-1,)),
            (0, (2, 3), (1,)),
            (0, (), (1,)),
            (0, (1,) * 65, (1,) * 65),
            (0, (0, 2**40, 2**40), (1, 1, 1)),
            (0, (0, 2**61), (1, 1)),
            (0, (2**62,), (0,)),
        ],
    )
    def test_an_impossible_shape(self, path, offset, shape, strides):
        refuse(write(path, program(w=tensor(offset, shape, strides))), "'w'", "impossible shape")

    @pytest.mark.parametrize(
        ("offset", "shape", "strides"),
        [(0, (2.0,), (1,)), (0, (2,), (True,)), (0.0, (2,), (1,)), (0, (None,), (1,))],
    )
    def test_a_shape_that_is_not_of_integers(self, path, offset, shape, strides):
        code = program(w=tensor(offset, shape, strides))
        refuse(write(path, code), "a tensor whose shape is not integers")

    @pytest.mark.parametrize(("kind", "key"), [("module", text("0")), ("storage", number(0))])
    def test_what_refers_to_no_storage(self, path, kind, key):
        dtype = name_of("torch", "FloatStorage")
        of = group(text(kind), dtype, key, text("cpu"), number(6)) + b"Q"
        refuse(write(path, program(w=tensor(of=of))), "a reference to something other than a stor")

    @pytest.mark.parametrize("count", [6.0, None, "6"])
    def test_a_storage_as_long_as_no_integer(self, path, count):
        code = program(w=tensor(0, (1,), (1,), storage(count=count)))
        refuse(write(path, code), "a storage whose length is not an integer")

    def test_a_number_repeated_without_end(self, path):
        code = program(w=tensor(0, (10**9, 10**9 // 2), (0, 0)))
        refuse(write(path, code), "'w'", ".contiguous()")

    @pytest.mark.parametrize("count", [0, 5, 7, -6, 2**61, 2**200])
    def test_a_storage_of_another_length(self, path, count):
        code = program(w=tensor(0, (1,), (1,), storage(count=count)))
        refuse(write(path, code), "'w'", "24 bytes")

    def test_a_storage_of_another_type(self, path):
        code = program(w=tensor(of=storage(kind="DoubleStorage")))
        refuse(write(path, code), "'w'", "24 bytes")

    @pytest.mark.parametrize("key", ["1", "../data.pkl", "", "0/"])
    def test_a_storage_that_is_not_there(self, path, key):
        refuse(write(path, program(w=tensor(of=storage(key)))), "'w'", "missing")

    @pytest.mark.parametrize("field", [20, 24])
    def test_an_entry_larger_than_the_file(self, path, field):
        write(path, program(w=tensor()))
        content = bytearray(path.read_bytes())
        at = content.rindex(b"PK\x01\x02")
        content[at + field : at + field + 4] = struct.pack("<I", 1 << 30)
        path.write_bytes(content)
        refuse(path, "any/data/0")

    def test_a_header_that_is_not_one(self, path):
        write(path, program(w=tensor()))
        content = path.read_bytes()
        at = content.index(b"PK\x03\x04", 1)
        path.write_bytes(content[:at] + b"XX" + content[at + 2 :])
        found = tensors(opened(path))
        with pytest.raises(UserError, match="any/data/0"):
            found["w"].read()

    @pytest.mark.parametrize(
        ("items", "said"),
        [
            ({"state_dict": b"}" + text("w") + tensor() + b"s"}, "'state_dict'"),
            ({"w": tensor(), "epoch": number(3), "model": b"}"}, "'epoch'"),
            ({"w": name_of("torch", "FloatStorage")}, "'w'"),
            ({"w": storage()}, "'w'"),
        ],
    )
    def test_more_than_a_state_dict(self, path, items, said):
        refuse(write(path, program(**items)), said, "state_dict() by itself")

    def test_a_number_for_a_name(self, path):
        refuse(write(path, b"\x80\x02}" + number(3) + tensor() + b"s."), "'3'", "by itself")

    @pytest.mark.parametrize("code", [tensor(), number(1), b"]", b"N"])
    def test_no_dict_at_all(self, path, code):
        refuse(write(path, b"\x80\x02" + code + b"."), "not a state dict")

    @pytest.mark.parametrize("one_by_one", [True, False])
    def test_a_name_given_twice(self, path, one_by_one):
        item = text("w") + tensor()
        code = item + b"s" + item + b"s." if one_by_one else b"(" + item + item + b"u."
        refuse(write(path, b"\x80\x02}" + code), "twice")

    def test_metadata_that_asks_for_a_negation(self, path):
        extra = (NO_HOOKS, b"}" + text("neg") + b"\x88s")
        refuse(write(path, program(w=tensor(extra=extra))), "damaged")
