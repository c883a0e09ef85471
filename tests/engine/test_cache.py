"""The cache: its size, and that each position of each slot is read as it was written."""

import jax.numpy as jnp
import numpy as np
import pytest

from gptj import kernels
from gptj.config import ModelConfig
from gptj.engine.cache import new_cache, read, write
from gptj.errors import UserError
from gptj.quantised import Int8Rows
from gptj.sharding import make_mesh

CONFIG = ModelConfig(2, 8, 2, 4, 8, 5, 8, 600)
DRAW = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("positions", "kept"), [(1, 256), (256, 256), (257, 512), (512, 512), (600, 768)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_has_an_array_a_layer_of_whole_blocks(positions, kept, dtype):
    cache = new_cache(CONFIG, 3, jnp.dtype(dtype), positions)
    assert len(cache) == 2
    for rows in (cache[0].keys, cache[1].values):
        assert rows.shape == (3, 2, kept, 4)
        assert rows.dtype == ("uint16" if dtype == "bfloat16" else dtype)
        assert not rows.any()
    few = new_cache(CONFIG, 3, jnp.dtype(dtype), positions, quantised=True)[0].values
    assert isinstance(few, Int8Rows)
    assert (few.values.dtype, few.values.shape) == ("int8", (3, 2, kept, 4))
    assert (few.scale.dtype, few.scale.shape) == ("float32", (3, 2, kept, 1))


def test_a_mesh_must_divide_the_heads_and_the_slots():
    import jax

    with jax.set_mesh(make_mesh(tensor=4)), pytest.raises(UserError, match="heads"):
        new_cache(CONFIG, 4, jnp.float32, 8)
    with jax.set_mesh(make_mesh(data=2)), pytest.raises(UserError, match="3"):
        new_cache(CONFIG, 3, jnp.float32, 8)


def new(some: int, length: int, dtype) -> jnp.ndarray:
    return jnp.asarray(DRAW.integers(-8, 9, (some, length, 2, 4)), dtype)


def all_of(rows, slot=None) -> np.ndarray:
    """What is in the cache: slots, positions, heads, dims."""
    blocks = [read(rows, jnp.int32(index), slot) for index in range(2)]
    return np.concatenate(blocks, axis=2).transpose(0, 2, 1, 3).astype(np.float32)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
class TestWriting:
    def rows(self, kind):
        dtype = jnp.dtype("bfloat16" if kind == "bfloat16" else "float32")
        return new_cache(CONFIG, 3, dtype, 512, quantised=kind == "int8")[0].keys, dtype

    def near(self, found, expected, kind):
        # int8 rounds to a 254th of the largest of a vector, here at most 8.
        np.testing.assert_allclose(found, expected, atol=8 / 254 + 1e-6 if kind == "int8" else 0)

    def test_each_slot_at_its_own_position(self, kind):
        rows, dtype = self.rows(kind)
        pieces, expected = new(3, 2, dtype), np.zeros((3, 512, 2, 4), np.float32)
        for slot, at in enumerate((0, 255, 510)):
            expected[slot, at : at + 2] = pieces[slot].astype(jnp.float32)
        self.near(all_of(write(rows, pieces, jnp.array([0, 255, 510]))), expected, kind)

    @pytest.mark.parametrize("natively", [False, True])
    def test_one_slot_and_no_other(self, kind, natively):
        with kernels.wanted(natively):
            rows, dtype = self.rows(kind)
            piece, expected = new(1, 3, dtype), np.zeros((3, 512, 2, 4), np.float32)
            expected[1, 254:257] = piece[0].astype(jnp.float32)
            rows = write(rows, piece, jnp.array([254]), jnp.array([1]))
            self.near(all_of(rows), expected, kind)
            self.near(all_of(rows, jnp.array([1])), expected[1:2], kind)
            self.near(all_of(rows, jnp.array([2])), expected[2:], kind)
