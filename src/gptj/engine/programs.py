"""What the engine runs on the devices: one forward pass over a cache, and the jitted uses of it.

Each compiles once: prompts are read in chunks of one size, all slots draw together whatever is in
them, and how far to look into the cache and how many steps to make are values, not shapes.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gptj import kernels
from gptj.attention import KeysValues, cached_attention
from gptj.config import ModelConfig
from gptj.engine import cache as caching
from gptj.engine.cache import Cache, LayerCache
from gptj.engine.request import MOST_ALTERNATIVES
from gptj.engine.sampling import log_probabilities, sample
from gptj.engine.slots import Slots
from gptj.model import Block, Params, block, embed, final_norm, logits
from gptj.sharding import reshape, reshard, spec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogProbs:
    """Log-probabilities in nats, of tokens and of the likeliest in their places."""

    own: Float[Array, "..."]
    top: Float[Array, "... top"]
    top_tokens: Int[Array, "... top"]


Tokens = Int[Array, "batch length"]
Hidden = Float[Array, "batch length embed"]
Carry = tuple[Array, Array, LogProbs, Cache, Slots]
"""Of decode steps: how many were made, what they drew, and what they change."""


def forward(
    params: Params[Array],
    cache: Cache,
    tokens: Tokens,
    start: Int[Array, " batch"],
    config: ModelConfig,
    *,
    slot: Int[Array, " ways"] | None = None,
    ring: Bool[Array, " batch"] | None = None,
    active: Bool[Array, " batch"] | None = None,
) -> tuple[Hidden, Cache]:
    """Hidden states of `tokens`, which stand at `start` and after, and the cache with them in it.

    `model.logits` makes logits of the states one needs. A row may end in padding: what it writes
    lies after the row's tokens, which never see it, and is written over by those to come.

    Args:
      tokens: one row a slot, or with `slot` one row for each part the mesh splits the slots into.
      slot: whose row of the cache that is.
      ring: rows of one token that, past the context's end, go on over its first `context - 1`
        places, as the original did. A key keeps the rotation of its position, and only the
        distance between two counts.
      active: rows that matter; the others see one key, which is the least work.
    """
    tokens, start = reshard(tokens, "batch", None), reshard(start, "batch")
    positions = start[:, None] + jnp.arange(tokens.shape[1])
    at, last_seen = start, positions
    if ring is not None:
        size = config.context - 1
        at = jnp.where(ring, start % size, start)
        last_seen = jnp.where(ring[:, None], jnp.minimum(positions, size - 1), positions)
    if active is not None:
        last_seen = jnp.where(active[:, None], last_seen, 0)

    def put(rows: Array, new: Array) -> Array:
        if slot is None:
            return caching.write(rows, new, at)
        return caching.write_one(rows, new, slot, at)

    def get(rows: Array, index: Array) -> Array:
        if slot is None:
            return caching.read(rows, index)
        return caching.read_one(rows, slot, index)

    def layer(x: Array, stored: Block[Array], seen: LayerCache) -> tuple[Array, LayerCache]:
        now = seen

        def attend(query: Array, key: Array, value: Array) -> Array:
            nonlocal now
            now = LayerCache(put(seen.keys, key), put(seen.values, value))

            def read(index: Array) -> KeysValues:
                return get(now.keys, index), get(now.values, index)

            whole = (now.keys, now.values) if slot is None else None
            return cached_attention(query, last_seen, read, whole)

        return block(x, stored, config, positions, attend), now

    x, new = embed(params, tokens, cache[0].keys.dtype), []
    for stored, seen in zip(_layers(params), cache, strict=True):
        x, now = layer(x, stored, seen)
        new.append(now)
    return final_norm(params, x, config), tuple(new)


def _layers(params: Params[Array]) -> tuple[Block[Array], ...]:
    """Each layer's weights."""
    if isinstance(params.blocks, tuple):
        return params.blocks
    count = params.blocks.norm_scale.shape[0]
    return tuple(jax.tree.map(lambda x, i=i: x[i], params.blocks) for i in range(count))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def prefill(
    params: Params[Array],
    cache: Cache,
    tokens: Int[Array, "ways length+1"],
    start: Int[Array, " ways"],
    slot: Int[Array, " ways"],
    scored: Int[Array, ""],
    config: ModelConfig,
) -> tuple[LogProbs, Cache]:
    """Read a chunk of one slot's prompt in each part that the mesh splits the slots into.

    With `scored` at 1, also the log-probabilities of each chunk's tokens but the first, and at 2
    those of the likeliest in their places; zeros for what is not asked for. They come back whole on
    every device. Nothing is ever held for more than a chunk's logits.
    """
    tokens, slot = reshard(tokens, "batch", None), reshard(slot, "batch")
    hidden, cache = forward(params, cache, tokens[:, :-1], start, config, slot=slot)
    shape = (tokens.shape[0], tokens.shape[1] - 1)

    def score() -> LogProbs:
        rows = logits(params, hidden, config)
        rows = reshape(reshard(rows, "batch", None, None), (-1, rows.shape[-1]), "batch", None)
        targets = reshape(tokens[:, 1:], (-1,), "batch")
        with kernels.wanted():
            found = log_probabilities(rows, targets, config.vocab_size, scored > 1)
        apart = (reshape(x, (*shape, *x.shape[1:]), "batch", *[None] * x.ndim) for x in found)
        return LogProbs(*map(_whole, apart))

    return jax.lax.cond(scored > 0, score, lambda: _no_log_probs(shape, config)), cache


@functools.partial(jax.jit, static_argnames=("burst", "config"), donate_argnames=("cache", "slots"))
def decode(
    params: Params[Array],
    cache: Cache,
    slots: Slots,
    steps: Int[Array, ""],
    burst: int,
    config: ModelConfig,
) -> tuple[Int[Array, "burst slots"], LogProbs, Cache, Slots]:
    """Up to `steps` times, read every slot's token and draw its next.

    The tokens and their log-probabilities come back whole on every device, so that any host can
    read them; -1 for a slot that was not active, or a step that was not made.
    """
    count = slots.token.shape[0]
    tokens = _whole(jnp.full((burst, count), -1, jnp.int32))
    found = _no_log_probs((burst, count), config)

    def is_left(carry: Carry) -> Array:
        return (carry[0] < steps) & jnp.any(carry[-1].active)

    def step(carry: Carry) -> Carry:
        index, tokens, found, cache, slots = carry
        with kernels.wanted():
            drawn, own, cache, slots = _step(params, cache, slots, config)

        def keep(all_steps: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(all_steps, _whole(new), index, 0)

        return index + 1, keep(tokens, drawn), jax.tree.map(keep, found, own), cache, slots

    begin = (jnp.zeros((), jnp.int32), tokens, found, cache, slots)
    _, tokens, found, cache, slots = jax.lax.while_loop(is_left, step, begin)
    return tokens, found, cache, slots


def _step(
    params: Params[Array], cache: Cache, slots: Slots, config: ModelConfig
) -> tuple[Int[Array, " slots"], LogProbs, Cache, Slots]:
    """One token a slot, and the slots after it."""
    hidden, cache = forward(
        params, cache, slots.token[:, None], slots.position, config,
        ring=slots.slide & slots.active,
        active=slots.active,
    )  # fmt: skip
    last = reshard(logits(params, hidden, config)[:, 0], "batch", None)
    token = sample(last, slots, config.vocab_size)
    count = token.shape[0]
    found = jax.lax.cond(
        jnp.any(slots.active & slots.alternatives),
        lambda: LogProbs(
            *map(_whole, log_probabilities(last, token, config.vocab_size, jnp.array(True)))
        ),
        lambda: _no_log_probs((count,), config),
    )
    return jnp.where(slots.active, token, -1), found, cache, _advance(slots, token)


def _advance(slots: Slots, token: Int[Array, " slots"]) -> Slots:
    """The slots once `token` is drawn; those that are not active stay as they are."""
    is_token = jnp.arange(slots.ends.shape[-1]) == token[:, None]
    ended = jnp.any(slots.ends & is_token, axis=-1)
    one = slots.active.astype(jnp.int32)
    drawn = jax.lax.cond(
        jnp.any(slots.active & slots.penalised),
        lambda: slots.drawn + is_token * one[:, None],
        lambda: slots.drawn,
    )
    return dataclasses.replace(
        slots,
        token=jnp.where(slots.active, token, slots.token),
        position=slots.position + one,
        active=slots.active & ~ended & (slots.remaining > 1),
        remaining=slots.remaining - one,
        required=slots.required - one,
        drawn=drawn,
    )


@functools.partial(jax.jit, donate_argnames="slots")
def set_slot(slots: Slots, index: Int[Array, ""], values: Slots) -> Slots:
    """The slots with one of them replaced; `values` has no leading dim."""

    def put(all_slots: Array, value: Array) -> Array:
        if spec() is None:
            return jax.lax.dynamic_update_index_in_dim(all_slots, value, index, 0)
        mine = jnp.arange(all_slots.shape[0]) == index
        return jnp.where(mine.reshape(-1, *[1] * (all_slots.ndim - 1)), value, all_slots)

    return jax.tree.map(put, slots, values)


@functools.partial(jax.jit, donate_argnames="slots")
def set_active(slots: Slots, index: Int[Array, ""], active: Bool[Array, ""]) -> Slots:
    """The slots with one of them set going, or stopped."""
    mine = jnp.arange(slots.active.shape[0]) == index
    return dataclasses.replace(slots, active=jnp.where(mine, active, slots.active))


@functools.partial(jax.jit, static_argnames="length")
def copy_out(cache: Cache, slot: Int[Array, ""], start: Int[Array, ""], length: int) -> Cache:
    """The keys and values of one slot's chunk."""

    def cut(rows: Array) -> Array:
        size = (1, rows.shape[1], length, rows.shape[3])
        return jax.lax.dynamic_slice(rows, (slot, 0, start, 0), size)

    return jax.tree.map(cut, cache)


@functools.partial(jax.jit, donate_argnames="cache")
def copy_in(cache: Cache, chunk: Cache, slot: Int[Array, ""], start: Int[Array, ""]) -> Cache:
    """The cache with a chunk put into one slot."""

    def put(rows: Array, piece: Array) -> Array:
        return jax.lax.dynamic_update_slice(rows, piece, (slot, 0, start, 0))

    return jax.tree.map(put, cache, chunk)


ALL = (prefill, decode, set_slot, set_active, copy_out, copy_in)
"""Every program that answering a request may run."""


def _whole(x: Array) -> Array:
    """The same on every device."""
    return reshard(x, *[None] * x.ndim)


def _no_log_probs(shape: tuple[int, ...], config: ModelConfig) -> LogProbs:
    top = (*shape, min(MOST_ALTERNATIVES, config.padded_vocab_size))
    zeros = jnp.zeros(shape), jnp.zeros(top), jnp.zeros(top, jnp.int32)
    return LogProbs(*map(_whole, zeros))
