"""What the engine runs on the devices: one forward pass over a cache, and three jitted uses of it.

`prefill` and `decode` compile once per number of rows: prompts are read in chunks of one fixed
size, and the cache has the same length whatever is in it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from gptj.attention import cached_attention
from gptj.config import ModelConfig
from gptj.engine.cache import Cache
from gptj.engine.sampling import sample
from gptj.model import Block, Params, block, embed, final_norm, logits, losses
from gptj.sharding import reshard

CHUNK = 64
"""Tokens of every row that `prefill` reads at a time."""


def forward(
    params: Params[Array],
    cache: Cache,
    tokens: Int[Array, "batch length"],
    start: Int[Array, " batch"],
    config: ModelConfig,
) -> tuple[Float[Array, "batch length embed"], Cache]:
    """Hidden states of `tokens`, which stand at `start` and after, and the cache with them in it.

    `model.logits` makes logits of the states one needs. A row may end in padding: what it writes
    lies after the row's tokens, which never see it, and is written over by those to come. A row
    that would pass the cache's end is written before it: the caller leaves room.
    """
    tokens, start = reshard(tokens, "batch", None), reshard(start, "batch")
    positions = start[:, None] + jnp.arange(tokens.shape[1])

    # Each layer reads its part of the cache with the new keys and values put in; they are kept at
    # the end, all at once and in place. A cache that came out of the scan would be copied whole.
    def layer(x: Array, inputs: tuple[Block[Array], Cache]) -> tuple[Array, Cache]:
        stored, seen = inputs
        new = seen

        def attend(query: Array, key: Array, value: Array) -> Array:
            nonlocal new
            new = Cache(key, value)
            now = jax.tree.map(functools.partial(_write, start=start), seen, new)
            return cached_attention(query, now.keys, now.values, start)

        x = block(x, stored, config, positions, attend)
        return x, new

    x = embed(params, tokens, cache.keys.dtype)
    x, new = jax.lax.scan(layer, x, (params.blocks, cache))
    cache = jax.tree.map(jax.vmap(functools.partial(_write, start=start)), cache, new)
    return final_norm(params, x, config), cache


def _write(
    cache: Float[Array, "batch context heads d_head"],
    new: Float[Array, "batch length heads d_head"],
    start: Int[Array, " batch"],
) -> Float[Array, "batch context heads d_head"]:
    """`new` put at each row's own position."""
    return jax.vmap(jax.lax.dynamic_update_slice_in_dim, in_axes=(0, 0, 0, None))(
        cache, new, start, 0
    )


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def prefill(
    params: Params[Array],
    cache: Cache,
    tokens: Int[Array, "batch length"],
    start: Int[Array, " batch"],
    config: ModelConfig,
) -> Cache:
    """Read a chunk of prompt; `decode` reads its last token, and so makes the first logits."""
    return forward(params, cache, tokens, start, config)[1]


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def decode(
    params: Params[Array],
    cache: Cache,
    tokens: Int[Array, " batch"],
    positions: Int[Array, " batch"],
    seed: UInt32[Array, " batch"],
    temperature: Float[Array, " batch"],
    top_k: Int[Array, " batch"],
    top_p: Float[Array, " batch"],
    config: ModelConfig,
) -> tuple[Int[Array, " batch"], Cache]:
    """Read one token a row, at its position, and draw the next; see `sampling.sample`.

    The tokens come back whole on every device, so that any host can read them.
    """
    hidden, cache = forward(params, cache, tokens[:, None], positions, config)
    last = logits(params, hidden, config)[:, 0]
    drawn = sample(last, seed, positions + 1, temperature, top_k, top_p, config.vocab_size)
    return reshard(drawn, None), cache


@functools.partial(jax.jit, static_argnames="config")
def log_probs(
    params: Params[Array], tokens: Int[Array, "batch length+1"], config: ModelConfig
) -> Float[Array, "batch length"]:
    """The log-probability, in nats, of each token but the first, given those before it."""
    tokens = reshard(tokens, "batch", None)
    nll = losses(params, tokens, config, dtype=params.embedding.dtype)[1]
    return -reshard(nll, None, None)
