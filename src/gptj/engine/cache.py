"""The keys and values of the tokens read so far: a row of each a slot, an array of each a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from gptj import kernels
from gptj.attention import KEYS
from gptj.config import ModelConfig
from gptj.quantised import Int8Rows, int8_rows
from gptj.sharding import batch_ways, check_batch, check_mesh, reshape, spec

AXES = ("batch", "heads", None, None)
"""Logical axes of each array: slots over data and fsdp, heads over tensor."""

Rows = Num[Array, "slots heads positions d_head"] | Int8Rows
"""As they are, or each head's at each position rounded to int8 when it is written. On a CPU
bfloat16 is kept as its bits: to write into it, XLA would make all of it float32 and back."""


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


def new_cache(
    config: ModelConfig,
    slots: int,
    dtype: DTypeLike,
    positions: int,
    quantised: bool = False,
) -> Cache:
    """An empty cache for `slots` rows of at least `positions`, on the mesh that is set.

    Its bytes are `2 * layers * slots * positions * d_model` times those of `dtype`, which is also
    what the programs compute in; positions are rounded up to a multiple of 256. With `quantised`
    they are `2 * layers * slots * positions * (d_model + 4 * heads)` whatever the dtype.

    Raises:
      UserError: the mesh does not divide the heads, or the slots.
    """
    check_mesh(config)
    check_batch(slots)
    shape = (slots, config.heads, -(-positions // KEYS) * KEYS, config.d_head)

    def rows() -> Rows:
        if not quantised:
            kept = jnp.uint16 if dtype == jnp.bfloat16 and _on_cpu() else dtype
            return jnp.zeros(shape, kept, out_sharding=spec(*AXES))
        values = jnp.zeros(shape, jnp.int8, out_sharding=spec(*AXES))
        scale = jnp.zeros((*shape[:3], 1), jnp.float32, out_sharding=spec(*AXES))
        return Int8Rows(values, scale, jnp.dtype(dtype))

    return tuple(LayerCache(rows(), rows()) for _ in range(config.layers))


def write(
    rows: Rows,
    new: Float[Array, "some length heads d_head"],
    at: Int[Array, " some"],
    slot: Int[Array, " ways"] | None = None,
) -> Rows:
    """`new` put at each slot's own position, or with `slot` at one's in each part of the mesh."""
    if slot is not None:
        return _write_one(rows, new, slot, at)

    def put(row: Array, piece: Array, begin: Array) -> Array:
        return jax.lax.dynamic_update_slice(row, piece, (0, begin, 0))

    return _put(lambda all_rows, piece: jax.vmap(put)(all_rows, piece, at), rows, new)


def read(
    rows: Rows, index: Int[Array, ""], slot: Int[Array, " ways"] | None = None
) -> Float[Array, "some heads keys d_head"]:
    """The `index`-th 256 positions of every slot, or of one slot in each part of the mesh."""
    if slot is not None:
        return _read_one(rows, slot, index)
    return _get(lambda x: jax.lax.dynamic_slice_in_dim(x, index * KEYS, KEYS, axis=2), rows)


# A prompt is read by one slot of each part that the mesh splits the slots into; `slot` is its
# number within the part. Without a mesh plain slices do, which are in place on a CPU.


def _write_one(
    rows: Rows,
    new: Float[Array, "ways length heads d_head"],
    slot: Int[Array, " ways"],
    at: Int[Array, " ways"],
) -> Rows:
    """`new` put at a position of one slot of each part."""

    def put(part: Array, piece: Array, slot: Array, at: Array) -> Array:
        return jax.lax.dynamic_update_slice(part, piece[None], (slot, 0, at, 0))

    def put_all(all_rows: Array, pieces: Array) -> Array:
        if spec() is None:
            return jax.lax.dynamic_update_slice(all_rows, pieces, (slot[0], 0, at[0], 0))
        parts = _parts(all_rows)
        return reshape(jax.vmap(put)(parts, pieces, slot, at), all_rows.shape, *AXES)

    if kernels.in_use() and not isinstance(rows, Int8Rows):
        return kernels.put(rows, new, slot[0], at[0])
    return _put(put_all, rows, new)


def _read_one(
    rows: Rows, slot: Int[Array, " ways"], index: Int[Array, ""]
) -> Float[Array, "ways heads keys d_head"]:
    """The `index`-th 256 positions of one slot of each part."""

    def cut(part: Array, slot: Array) -> Array:
        size = (1, part.shape[1], KEYS, part.shape[3])
        return jax.lax.dynamic_slice(part, (slot, 0, index * KEYS, 0), size)

    def cut_all(all_rows: Array) -> Array:
        if spec() is None:
            return cut(all_rows, slot[0])
        return jax.vmap(lambda part, slot: cut(part, slot)[0])(_parts(all_rows), slot)

    return _get(cut_all, rows)


def _put(
    put: Callable[[Array, Array], Array],
    rows: Rows,
    new: Float[Array, "some length heads d_head"],
) -> Rows:
    """What `put` makes of each array of `rows` and what is to be in it, laid out alike."""
    pieces = new.transpose(0, 2, 1, 3)
    if isinstance(rows, Int8Rows):
        return jax.tree.map(put, rows, int8_rows(pieces))
    if rows.dtype == jnp.uint16:
        pieces = jax.lax.bitcast_convert_type(pieces, jnp.uint16)
    return put(rows, pieces)


def _get(cut: Callable[[Array], Array], rows: Rows) -> Float[Array, "some heads keys d_head"]:
    """What `cut` takes of each array of `rows`, as numbers to compute with."""
    if isinstance(rows, Int8Rows):
        return jax.tree.map(cut, rows).read()
    piece = cut(rows)
    return jax.lax.bitcast_convert_type(piece, jnp.bfloat16) if piece.dtype == jnp.uint16 else piece


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _parts(rows: Array) -> Float[Array, "ways slots heads positions d_head"]:
    ways = batch_ways()
    shape = (ways, rows.shape[0] // ways, *rows.shape[1:])
    return reshape(rows, shape, "batch", None, "heads", None, None)
