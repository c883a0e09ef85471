"""Before anything is restored: is it that model, that tree, and how much is read at once."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptj.checkpoint import restoring
from gptj.checkpoint.manifest import CheckpointError
from gptj.sharding import make_mesh

PATH = "run/checkpoints/00000004"


def shape(*sizes, dtype=jnp.float32, **options):
    return jax.ShapeDtypeStruct(sizes, dtype, **options)


class TestTheModel:
    @pytest.mark.parametrize(
        ("there", "here"),
        [
            (None, None),
            ({}, {"layers": 2}),
            ({"layers": 2}, {}),
            ({"layers": 2}, None),
            (None, {"layers": 2}),
            ({"layers": 2, "old": 1}, {"new": 3, "layers": 2}),
        ],
    )
    def test_is_another_only_by_a_field_that_both_have(self, there, here):
        restoring.check_model(PATH, there, here)

    def test_is_told_by_the_first_field_that_differs(self):
        there, here = {"b": 1, "a": 2, "c": 3}, {"c": 3, "a": 9, "b": 9}
        with pytest.raises(CheckpointError) as refused:
            restoring.check_model(PATH, there, here)
        assert str(refused.value) == (
            f"checkpoint {PATH} is of another model: a is 2 there and 9 here. Use the config it "
            "was trained with"
        )


SAVED = {"params": {"a": shape(3), "b": shape(2, 2)}, "opt_state": (shape(3),), "step": shape()}


class TestTheTree:
    @pytest.mark.parametrize("fields", [["params"], ["step"], ["params", "opt_state"], []])
    def test_may_be_some_of_what_was_saved(self, fields):
        restoring.check_shapes(PATH, SAVED, {name: SAVED[name] for name in fields})

    def test_names_are_the_same_in_every_kind_of_tree(self):
        """What Orbax returns is dicts, by text; what is wanted are records and tuples."""
        state = optax.adamw(1e-3).init({"w": jnp.zeros((2, 3))})
        adam = {"count": shape(), "mu": {"w": shape(2, 3)}, "nu": {"w": shape(2, 3)}}
        restoring.check_shapes(PATH, {"opt_state": {"0": adam}}, {"opt_state": state})
        for other in (shape(3, 2), shape()):
            adam["nu"]["w"] = other
            with pytest.raises(CheckpointError, match=r"opt_state\.0\.nu\.w is \(.*\) there and"):
                restoring.check_shapes(PATH, {"opt_state": {"0": adam}}, {"opt_state": state})

    @pytest.mark.parametrize(
        ("part", "wanted", "said"),
        [
            ("params", {"a": shape(3), "b": shape(4)}, "model: params.b is (2, 2) there and (4,)"),
            ("params", {"a": shape(3)}, "model: params.b is (2, 2) there and missing here."),
            (
                "params",
                {},
                "model: params.a is (3,) there and missing here. Use the model's config",
            ),
            (
                "opt_state",
                (shape(3), shape()),
                "optimizer: opt_state.1 is missing there and () here",
            ),
            (
                "opt_state",
                (),
                "optimizer: opt_state.0 is (3,) there and missing here. Use the opti",
            ),
            ("step", shape(1), "tree: step is () there and (1,) here. Use the tree's config"),
        ],
    )
    def test_is_told_by_the_first_array_that_differs(self, part, wanted, said):
        with pytest.raises(CheckpointError) as refused:
            restoring.check_shapes(PATH, SAVED, SAVED | {part: wanted})
        assert f"checkpoint {PATH} is of another {said}" in str(refused.value)


def stored(chunks, dtype="float32"):
    return types.SimpleNamespace(storage=types.SimpleNamespace(chunk_shape=chunks), dtype=dtype)


class TestWhatIsReadAtOnce:
    """All of every chunk that a shard touches, wherever it begins."""

    @pytest.mark.parametrize(
        ("sizes", "spec", "chunks", "numbers"),
        [
            ((16, 8), (), (16, 8), 16 * 8),  # a chunk, and it is all there is
            ((16, 8), (), (4, 8), 16 * 8),
            ((16, 8), ("fsdp",), (16, 8), 16 * 8),  # an eighth, of a chunk that is everything
            ((16, 8), ("fsdp",), (2, 8), 2 * 2 * 8),  # it may begin within a chunk
            ((16, 8), ("fsdp",), (1, 8), 3 * 8),
            ((16, 8), ("fsdp",), (5, 8), 2 * 5 * 8),
            ((16, 8), (None, "fsdp"), (4, 2), 16 * 2 * 2),
            ((8,), ("fsdp",), (4,), 8),
        ],
    )
    def test_by_hand(self, sizes, spec, chunks, numbers):
        layout = jax.NamedSharding(make_mesh(fsdp=8), jax.P(*spec))
        placed = {"x": shape(*sizes, sharding=layout)}
        for dtype in ("float32", "int8"):
            found = restoring._largest_reading({"x": stored(chunks, dtype)}, placed)
            assert found == numbers * np.dtype(dtype).itemsize

    @pytest.mark.parametrize("storage", [None, types.SimpleNamespace(chunk_shape=None)])
    def test_what_says_nothing_of_chunks_is_one(self, storage):
        layout = jax.NamedSharding(make_mesh(fsdp=8), jax.P("fsdp"))
        found = {"x": types.SimpleNamespace(storage=storage, dtype="float32")}
        assert restoring._largest_reading(found, {"x": shape(16, sharding=layout)}) == 64

    def test_the_largest_counts(self):
        placed = restoring._placed({"a": shape(5), "b": shape(7), "c": shape(6)})
        found = {name: stored((leaf.shape[0],)) for name, leaf in placed.items()}
        assert restoring._largest_reading(found, placed) == 28
        assert restoring._largest_reading({}, {}) == 0


def test_a_leaf_without_a_place_gets_the_first_device():
    layout = jax.NamedSharding(make_mesh(fsdp=8), jax.P("fsdp"))
    placed = restoring._placed({"a": shape(8, sharding=layout), "b": shape(3, dtype=jnp.int8)})
    assert placed["a"].sharding == layout
    assert placed["b"].sharding.device_set == {jax.devices()[0]}
    assert (placed["b"].shape, placed["b"].dtype) == ((3,), jnp.int8)


class TestSeveralProcesses:
    """Each reads some of the files, and all refuse what one finds damaged."""

    MANIFEST = types.MappingProxyType(
        {
            "files": {
                name: {"bytes": size} for name, size in zip("abcde", (5, 3, 9, 1, 7), strict=True)
            }
        }
    )

    @pytest.fixture
    def together(self, monkeypatch):
        """Verify as one of two or more, of which the others found what is said."""
        read = []

        def verify(index, others, damaged=None, missing=None):
            def check_sizes(path, manifest):
                if missing:
                    raise CheckpointError(missing)

            def changed(path, manifest, names):
                read.append("".join(names))
                return damaged

            monkeypatch.setattr(restoring.manifests, "check_sizes", check_sizes)
            monkeypatch.setattr(restoring.manifests, "changed", changed)
            monkeypatch.setattr(jax, "process_count", lambda: len(others))
            monkeypatch.setattr(jax, "process_index", lambda: index)

            def gathered(mine):
                found = np.array(others)
                found[index] = mine
                return found

            monkeypatch.setattr(restoring.multihost_utils, "process_allgather", gathered)
            restoring._verify_together(PATH, self.MANIFEST)
            return read

        return verify

    def test_share_the_files_from_the_smallest_on(self, together):
        assert together(0, [False] * 2) == ["dac"]
        assert together(1, [False] * 2)[1:] == ["be"]

    def test_alone_reads_all_and_asks_nobody(self, together, monkeypatch):
        assert together(0, [False]) == ["dbaec"]
        monkeypatch.setattr(restoring.multihost_utils, "process_allgather", pytest.fail)
        restoring._verify_together(PATH, self.MANIFEST)

    @pytest.mark.parametrize("others", [[False, False], [False, True]])
    def test_say_what_they_found_themselves(self, together, others):
        with pytest.raises(CheckpointError, match=f"{PATH} is damaged: a is not what was written"):
            together(0, others, damaged="a")
        with pytest.raises(CheckpointError, match=r"^b is missing$"):
            together(0, others, missing="b is missing")

    @pytest.mark.parametrize(
        ("others", "who"), [([False, True], 1), ([False, False, True, True], 2)]
    )
    def test_or_who_did(self, together, others, who):
        with pytest.raises(CheckpointError) as refused:
            together(0, others)
        assert str(refused.value) == (
            f"checkpoint {PATH} is damaged: process {who} says which of its files is"
        )
