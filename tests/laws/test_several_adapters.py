"""Several adapters beside one model: each row computes as if its own were the only one."""

import contextlib
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import adapters, kernels, model
from gptj.adapters import LoRAConfig, Pair
from gptj.config import ModelConfig
from gptj.convert.load import quantised
from gptj.engine.forward import layers_of
from gptj.errors import UserError
from gptj.sharding import make_mesh, place, reshape, reshard

CONFIG = ModelConfig(2, 64, 4, 16, 128, 100, 128, 64)
LORA = LoRAConfig(rank=4, alpha=8.0)
TOKENS = np.random.default_rng(0).integers(0, 100, (1, 8)).astype(np.int32).repeat(8, 0)
ROWS = np.array([0, 1, 2, 3, 1, 2, 0, 3], np.int32)

put = jax.jit(adapters.put, donate_argnums=0)


@functools.cache
def drawn(seed: int):
    """Adapters that change something, as wide as their part."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda w: draw.normal(size=w.shape, scale=0.1).astype("f4"), adapters.table(CONFIG, LORA)
    )


def widened(pair: Pair) -> Pair:
    more = adapters.columns_for(LORA.rank) - LORA.rank
    return Pair(
        np.pad(pair.down, [(0, 0), (0, 0), (0, more)]), np.pad(pair.up, [(0, 0), (0, more), (0, 0)])
    )


def with_them(params, seeds, count=3):
    """The weights with these adapters in their room, by part; 0 leaves a part empty."""
    beside = adapters.with_room(params, CONFIG, count, LORA.rank)
    rooms = adapters.rooms_of(beside.blocks)
    for index, seed in enumerate(seeds, 1):
        wide = {name: widened(pair) for name, pair in drawn(seed).items()} if seed else None
        rooms = put(rooms, wide, np.int32(index), np.float32(LORA.scale)) if wide else rooms
    return dataclasses.replace(beside, blocks=adapters.with_rooms(beside.blocks, rooms))


@functools.partial(jax.jit, static_argnames=("dtype", "natively"))
def logits(params, tokens, rows, dtype=jnp.float32, natively=False):
    wide = jnp.broadcast_to(reshard(rows, "batch")[:, None], tokens.shape)
    each = reshape(wide, (-1,), "batch")
    blocks = tuple(adapters.choose(block, each) for block in layers_of(params))
    with kernels.wanted() if natively else contextlib.nullcontext():
        return model.forward(
            dataclasses.replace(params, blocks=blocks), tokens, CONFIG, dtype=dtype
        )


@pytest.mark.parametrize(
    ("kind", "dtype", "natively"),
    [
        (None, "float32", True),
        (None, "bfloat16", True),
        ("int8", "float32", True),
        ("int4", "bfloat16", True),
        (None, "float32", False),
        ("int8", "float32", False),
    ],
)
def test_a_row_is_that_of_the_model_with_its_adapter_joined_or_none(kind, dtype, natively):
    """Bit for bit by our native programs; XLA makes another program of the sum of two products."""
    params = model.init(jax.random.key(0), CONFIG)
    cast = lambda x: x.astype(dtype)  # noqa: E731
    params = quantised(params, CONFIG, dtype, kind) if kind else jax.tree.map(cast, params)

    def compute(weights):
        found = logits(weights, TOKENS, ROWS, dtype=dtype, natively=natively)
        return np.asarray(found)

    found = compute(with_them(params, (1, 2, 3)))
    alike = np.testing.assert_allclose
    alike = np.testing.assert_array_equal if natively else functools.partial(alike, atol=1e-5)
    for index in range(4):
        own = params
        if index:
            own = adapters.joined(params, jax.tree.map(jnp.asarray, drawn(index)), CONFIG, LORA)
        rows = np.flatnonzero(index == ROWS)
        alike(found[rows], compute(own)[rows])
    for one, other in itertools.combinations(range(4), 2):  # rows of one text
        assert not np.allclose(found[one], found[other], atol=1e-3)


MESHES = [None, (2, 1, 4), (2, 2, 2), (1, 8, 1)]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_it_does_not_matter_in_which_part_it_is_nor_what_is_in_the_others(mesh):
    one = logits(with_them(model.init(jax.random.key(0), CONFIG), (1, 2, 3)), TOKENS, ROWS)
    with jax.set_mesh(make_mesh(*mesh)) if mesh else contextlib.nullcontext():
        params, tokens = model.init(jax.random.key(0), CONFIG), place(TOKENS, "batch", None)

        def compute(seeds, rows):
            return np.asarray(logits(with_them(params, seeds), tokens, place(rows, "batch")))

        found = compute((1, 2, 3), ROWS)
        np.testing.assert_allclose(found, one, atol=1e-5)
        moved = np.array([0, 2, 3, 1], np.int32)[ROWS]
        np.testing.assert_array_equal(compute((3, 1, 2), moved), found)
        alone, known = compute((0, 2, 0), ROWS), ROWS % 2 == 0
        np.testing.assert_array_equal(alone[known], found[known])
        nothing = alone[ROWS == 1]  # an empty part changes nothing
        np.testing.assert_array_equal(nothing, found[ROWS == 0])


@pytest.mark.parametrize(("rank", "columns"), [(1, 16), (16, 16), (17, 32), (64, 64), (100, 128)])
def test_a_part_is_a_power_of_two_wide(rank, columns):
    assert adapters.columns_for(rank) == columns
    beside = adapters.with_room(model.init(jax.random.key(0), CONFIG), CONFIG, 3, rank)
    assert beside.blocks.query.room.down.shape == (2, 64, 3 * columns)
    assert beside.blocks.ffn_out.room.up.shape == (2, 3 * columns, 64)


def test_a_mesh_that_does_not_divide_the_room():
    params = model.init(jax.random.key(0), CONFIG)
    said = "tensor=3 does not divide the 16 columns of an adapter: make it a power of two"
    with jax.set_mesh(make_mesh(1, 1, 3)), pytest.raises(UserError, match=said):
        adapters.with_room(params, CONFIG, 3, 4)


def test_there_is_room_once():
    beside = adapters.with_room(model.init(jax.random.key(0), CONFIG), CONFIG, 3, 4)
    with pytest.raises(UserError, match="an adapter beside it already: merge it first"):
        adapters.with_room(beside, CONFIG, 3, 4)
