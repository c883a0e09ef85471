"""The keys and values of the tokens read so far: a row of each a slot, an array of each a layer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gptj.attention import KEYS
from gptj.config import ModelConfig
from gptj.sharding import batch_ways, check_batch, check_mesh, reshape, spec

AXES = ("batch", "heads", None, None)
"""Logical axes of each array: slots over data and fsdp, heads over tensor."""

Rows = Float[Array, "slots heads positions d_head"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """What one layer's attention remembers, by slot and position."""

    keys: Rows
    """Rotated to their positions."""
    values: Rows


Cache = tuple[LayerCache, ...]
"""One a layer: stacked on a leading dim, a CPU copies all of it in every step. A program that
takes a cache consumes it."""


def new_cache(config: ModelConfig, slots: int, dtype: DTypeLike, positions: int) -> Cache:
    """An empty cache for `slots` rows of at least `positions`, on the mesh that is set.

    Its bytes are `2 * layers * slots * positions * d_model` times those of `dtype`, which is also
    what the programs compute in; positions are rounded up to a multiple of 256.

    Raises:
      UserError: the mesh does not divide the heads, or the slots.
    """
    check_mesh(config)
    check_batch(slots)
    shape = (slots, config.heads, -(-positions // KEYS) * KEYS, config.d_head)
    return tuple(
        LayerCache(*(jnp.zeros(shape, dtype, out_sharding=spec(*AXES)) for _ in range(2)))
        for _ in range(config.layers)
    )


def write(
    rows: Rows, new: Float[Array, "slots length heads d_head"], at: Int[Array, " slots"]
) -> Rows:
    """`new` put at each slot's own position."""

    def put(row: Array, piece: Array, begin: Array) -> Array:
        return jax.lax.dynamic_update_slice(row, piece, (0, begin, 0))

    return jax.vmap(put)(rows, new.transpose(0, 2, 1, 3), at)


def read(rows: Rows, index: Int[Array, ""]) -> Float[Array, "slots heads keys d_head"]:
    """The `index`-th 256 positions of every slot."""
    return jax.lax.dynamic_slice_in_dim(rows, index * KEYS, KEYS, axis=2)


# A prompt is read by one slot of each part that the mesh splits the slots into; `slot` is its
# number within the part. Without a mesh plain slices do, which are in place on a CPU.


def write_one(
    rows: Rows,
    new: Float[Array, "ways length heads d_head"],
    slot: Int[Array, " ways"],
    at: Int[Array, " ways"],
) -> Rows:
    """`new` put at a position of one slot of each part."""
    new = new.transpose(0, 2, 1, 3)
    if spec() is None:
        return jax.lax.dynamic_update_slice(rows, new, (slot[0], 0, at[0], 0))

    def put(part: Array, piece: Array, slot: Array, at: Array) -> Array:
        return jax.lax.dynamic_update_slice(part, piece[None], (slot, 0, at, 0))

    parts = _parts(rows)
    return reshape(jax.vmap(put)(parts, new, slot, at), rows.shape, *AXES)


def read_one(
    rows: Rows, slot: Int[Array, " ways"], index: Int[Array, ""]
) -> Float[Array, "ways heads keys d_head"]:
    """The `index`-th 256 positions of one slot of each part."""
    _, heads, _, d_head = rows.shape
    begin, size = index * KEYS, (1, heads, KEYS, d_head)
    if spec() is None:
        return jax.lax.dynamic_slice(rows, (slot[0], 0, begin, 0), size)

    def cut(part: Array, slot: Array) -> Array:
        return jax.lax.dynamic_slice(part, (slot, 0, begin, 0), size)[0]

    return jax.vmap(cut)(_parts(rows), slot)


def _parts(rows: Rows) -> Float[Array, "ways slots heads positions d_head"]:
    ways = batch_ways()
    shape = (ways, rows.shape[0] // ways, *rows.shape[1:])
    return reshape(rows, shape, "batch", None, "heads", None, None)
