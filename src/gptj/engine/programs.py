"""What the engine runs on the devices: the jitted uses of the forward pass and of the steps.

Each compiles once: prompts are read in chunks of few sizes, all slots draw together whatever is in
them, and how far to look into the cache and how many steps to make are values, not shapes.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gptj import adapters, kernels
from gptj.config import ModelConfig
from gptj.engine.cache import Cache
from gptj.engine.forward import forward
from gptj.engine.sampling import log_probabilities
from gptj.engine.slots import Slots
from gptj.engine.step import (
    Draft,
    LogProbs,
    State,
    guessing_step,
    no_log_probs,
    plain_step,
    whole,
)
from gptj.model import Params, logits
from gptj.sharding import reshape, reshard, spec


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def prefill(
    params: Params[Array],
    cache: Cache,
    tokens: Int[Array, "ways length+1"],
    start: Int[Array, " ways"],
    slot: Int[Array, " ways"],
    scored: Int[Array, ""],
    config: ModelConfig,
    adapter: Int[Array, " ways"] | None = None,
) -> tuple[LogProbs, Cache]:
    """Read a chunk of one slot's prompt in each part that the mesh splits the slots into.

    With `scored` at 1, also the log-probabilities of each chunk's tokens but the first, and at 2
    those of the likeliest in their places; zeros for what is not asked for. They come back whole on
    every device. Nothing is ever held for more than a chunk's logits. `adapter` is the slots' own.
    """
    tokens, slot = reshard(tokens, "batch", None), reshard(slot, "batch")
    read, targets = tokens[:, :-1], tokens[:, 1:]
    own, theirs = cache[: config.layers], cache[config.layers :]
    with kernels.wanted(), kernels.rounding():
        hidden, own = forward(params, own, read, start, config, slot=slot, adapter=adapter)

    def score() -> LogProbs:
        with kernels.wanted(), kernels.rounding():
            rows = logits(params, hidden, config)
            rows = reshape(reshard(rows, "batch", None, None), (-1, rows.shape[-1]), "batch", None)
            wanted = reshape(targets, (-1,), "batch")
            found = log_probabilities(rows, wanted, config.vocab_size, scored > 1)
        apart = (reshape(x, (*read.shape, *x.shape[1:]), "batch", *[None] * x.ndim) for x in found)
        return LogProbs(*map(whole, apart))

    found = jax.lax.cond(scored > 0, score, lambda: no_log_probs(read.shape, config))
    return found, (*own, *theirs)


@functools.partial(jax.jit, donate_argnames="cache")
def prefill_draft(
    draft: Draft,
    cache: Cache,
    tokens: Int[Array, "ways length+1"],
    start: Int[Array, " ways"],
    slot: Int[Array, " ways"],
) -> Cache:
    """A draft model's part of it, by a program of its own: so the model's is always the same."""
    tokens, slot = reshard(tokens, "batch", None), reshard(slot, "batch")
    own, theirs = cache[: -draft.config.layers], cache[-draft.config.layers :]
    with kernels.wanted(), kernels.rounding():
        _, theirs = forward(draft.params, theirs, tokens[:, :-1], start, draft.config, slot=slot)
    return (*own, *theirs)


@functools.partial(
    jax.jit,
    static_argnames=("burst", "config", "guesses"),
    donate_argnames=("cache", "slots"),
)
def decode(
    params: Params[Array],
    cache: Cache,
    slots: Slots,
    steps: Int[Array, ""],
    burst: int,
    config: ModelConfig,
    *,
    guesses: int = 0,
    draft: Draft | None = None,
    break_even: Float[Array, ""] | None = None,
) -> tuple[Int[Array, "rows slots"], LogProbs, Cache, Slots]:
    """Up to `steps` times, read every slot's token and draw its next; or with guesses its next few.

    The tokens and their log-probabilities come back whole on every device, so that any host can
    read them, in `burst * (guesses + 1)` rows; -1 for a slot that was not active, a guess that was
    wrong, or a step that was not made.
    """
    rows, count = burst * (guesses + 1), slots.token.shape[0]
    tokens = whole(jnp.full((rows, count), -1, jnp.int32))
    state = State(cache, slots, tokens, no_log_probs((rows, count), config))

    def is_left(carry: tuple[Array, State]) -> Array:
        return (carry[0] < steps) & jnp.any(carry[1].slots.active)

    def step(carry: tuple[Array, State]) -> tuple[Array, State]:
        index, state = carry
        with kernels.wanted(), kernels.rounding():
            if break_even is None:
                return index + 1, plain_step(params, state, index, config)
            row = index * (guesses + 1)
            return index + 1, guessing_step(params, state, row, config, guesses, draft, break_even)

    _, state = jax.lax.while_loop(is_left, step, (jnp.zeros((), jnp.int32), state))
    return state.tokens, state.found, state.cache, state.slots


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


@functools.partial(jax.jit, donate_argnames="slots")
def set_allowed(slots: Slots, index: Int[Array, ""], allowed: Bool[Array, " vocab"]) -> Slots:
    """The slots with the tokens that one of them may draw next."""
    mine = jnp.arange(slots.active.shape[0]) == index
    return dataclasses.replace(slots, allowed=jnp.where(mine[:, None], allowed, slots.allowed))


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


put_adapter = jax.jit(adapters.put, donate_argnames="rooms")

ALL = (
    *(prefill, prefill_draft, decode, set_slot, set_active, set_allowed, copy_out, copy_in),
    put_adapter,
)
"""Every program that answering a request may run."""
