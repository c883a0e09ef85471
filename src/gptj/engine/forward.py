"""The model over a cache: what reads a prompt and what draws are this one forward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gptj import kernels
from gptj.adapters import choose
from gptj.attention import KeysValues, cached_attention
from gptj.config import ModelConfig
from gptj.engine import cache as caching
from gptj.engine.cache import Cache, LayerCache
from gptj.model import Block, Params, block, embed, final_norm
from gptj.sharding import reshape, reshard

Tokens = Int[Array, "batch length"]
Hidden = Float[Array, "batch length embed"]


def forward(
    params: Params[Array],
    cache: Cache,
    tokens: Tokens,
    start: Int[Array, " batch"],
    config: ModelConfig,
    *,
    slot: Int[Array, " ways"] | None = None,
    adapter: Int[Array, " batch"] | None = None,
    ring: Bool[Array, " batch"] | None = None,
    active: Bool[Array, " batch"] | None = None,
) -> tuple[Hidden, Cache]:
    """Hidden states of `tokens`, which stand at `start` and after, and the cache with them in it.

    `model.logits` makes logits of the states one needs. A row may end in padding: what it writes
    lies after the row's tokens, which never see it, and is written over by those to come.

    Args:
      tokens: one row a slot, or with `slot` one row for each part the mesh splits the slots into.
      slot: whose row of the cache that is.
      adapter: which of the adapters beside the weights each row has, from 1; 0 is none. Where there
        is no room for any it is not looked at.
      ring: rows of one token that, past the context's end, go on over its first `context - 1`
        places, as the original did. A key keeps the rotation of its position, and only the
        distance between two counts.
      active: rows that matter; the others see one key, which is the least work.
    """
    tokens, start = reshard(tokens, "batch", None), reshard(start, "batch")
    positions = start[:, None] + jnp.arange(tokens.shape[1])
    at, last_seen = _places(start, positions, config.context - 1, ring, active)

    def layer(x: Array, stored: Block[Array], seen: LayerCache) -> tuple[Array, LayerCache]:
        now = seen

        def attend(query: Array, key: Array, value: Array) -> Array:
            nonlocal now
            keys = caching.write(seen.keys, key, at, slot)
            now = LayerCache(keys, caching.write(seen.values, value, at, slot))

            def read(index: Array) -> KeysValues:
                return caching.read(now.keys, index, slot), caching.read(now.values, index, slot)

            return cached_attention(query, last_seen, read, (now.keys, now.values), slot)

        if rows is not None:
            stored = choose(stored, rows)
        return block(x, stored, config, positions, attend), now

    rows = None if adapter is None else _by_row(adapter, tokens)
    x, new = embed(params, tokens, params.embedding.dtype), []
    with kernels.wanted(kernels.is_wanted() and _may_read_layers(params)):
        for stored, seen in zip(layers_of(params), cache, strict=True):
            x, now = layer(x, stored, seen)
            new.append(now)
    return final_norm(params, x, config), tuple(new)


def _by_row(adapter: Int[Array, " batch"], tokens: Tokens) -> Int[Array, " rows"]:
    """A row's number for each of its tokens."""
    each = jnp.broadcast_to(reshard(adapter, "batch")[:, None], tokens.shape)
    return reshape(each, (-1,), "batch")


def _places(
    start: Int[Array, " batch"],
    positions: Int[Array, "batch length"],
    size: int,
    ring: Bool[Array, " batch"] | None,
    active: Bool[Array, " batch"] | None,
) -> tuple[Int[Array, " batch"], Int[Array, "batch length"]]:
    """Where in the cache a row's tokens are written, and the last key that each of them sees."""
    at, last_seen = start, positions
    if ring is not None:
        at = jnp.where(ring, start % size, start)
        last_seen = jnp.where(ring[:, None], jnp.minimum(positions, size - 1), positions)
    if active is not None:
        last_seen = jnp.where(active[:, None], last_seen, 0)
    return at, last_seen


def layers_of(params: Params[Array]) -> tuple[Block[Array], ...]:
    """Each layer's weights."""
    if isinstance(params.blocks, tuple):
        return params.blocks
    count = params.blocks.norm_scale.shape[0]
    return tuple(jax.tree.map(lambda x, i=i: x[i], params.blocks) for i in range(count))


def _may_read_layers(params: Params[Array]) -> bool:
    """Whether a native program may read a layer: a GPU would copy it out of a stack for that."""
    return isinstance(params.blocks, tuple) or kernels.target() != "gpu"
