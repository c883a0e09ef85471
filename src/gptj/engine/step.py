"""A decode step: each slot's next token; or several, where guesses of them turn out right.

Guessing changes nothing but the speed. Guessed tokens are read beside the last known one, the draw
that was due anyway is made at each of their places, and a guess counts if it is what was drawn: at
any temperature the tokens are those that would have come one by one (compare "Fast Inference from
Transformers via Speculative Decoding", arXiv:2211.17192, which keeps only their distribution).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gptj import kernels
from gptj.config import ModelConfig
from gptj.engine.cache import Cache
from gptj.engine.forward import forward
from gptj.engine.request import MOST_ALTERNATIVES
from gptj.engine.sampling import log_probabilities, sample
from gptj.engine.slots import Slots
from gptj.model import Params, logits
from gptj.sharding import reshard, spec

WINDOW = 8
"""Guessing steps over which what a slot draws in one is averaged,"""

PATIENCE = 128
"""and plain steps after which it is given up no longer: it may go round in circles by now."""

NGRAMS = (3, 2)
"""How many of the last tokens are looked for in the text before them, the longer first."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogProbs:
    """Log-probabilities in nats, of tokens and of the likeliest in their places."""

    own: Float[Array, "..."]
    top: Float[Array, "... top"]
    top_tokens: Int[Array, "... top"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draft:
    """A smaller model that guesses. Its cache follows the model's own layers in the engine's."""

    params: Params[Array]
    config: ModelConfig = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What steps change."""

    cache: Cache
    slots: Slots
    tokens: Int[Array, "rows slots"]
    """What was drawn, in the order of the rows; -1 where nothing was."""
    found: LogProbs
    """Of the tokens, on slots that want them."""


def plain_step(
    params: Params[Array], state: State, row: Int[Array, ""], config: ModelConfig
) -> State:
    """One token for every active slot, put into that row."""
    slots, own = state.slots, state.cache[: config.layers]
    hidden, own = forward(
        params, own, slots.token[:, None], slots.position, config,
        adapter=slots.adapter,
        ring=slots.slide & slots.active,
        active=slots.active,
    )  # fmt: skip
    cache = (*own, *state.cache[config.layers :])
    rows = logits(params, hidden, config)[:, 0]
    return _draw(rows, dataclasses.replace(state, cache=cache), row, config)


def guessing_step(
    params: Params[Array],
    state: State,
    row: Int[Array, ""],
    config: ModelConfig,
    guesses: int,
    draft: Draft | None,
    break_even: Float[Array, ""],
) -> State:
    """Up to `guesses + 1` tokens for every active slot, put into that row and those after it.

    It reads as many for each, and so takes longer than a plain step, which is made instead where
    the slots together are not expected to draw `break_even` tokens each, by what they drew before.
    Where that would show in a slot's bits, only a draft model is spared. Slots that slide take a
    plain step.
    """
    slots, found = state.slots, None
    likely = slots.active & slots.guessing
    if draft is None:
        each = jax.vmap(functools.partial(look_up, count=guesses))
        found = jnp.where(slots.guessing[:, None], each(slots.history, slots.position), -1)
        likely &= found[:, 0] >= 0
    start = jnp.minimum(2 * break_even - 1, guesses + 1)
    expected = jnp.where(slots.pace > 0, slots.pace, start)
    gain = jnp.where(likely, expected, 1) - break_even
    pays = jnp.sum(jnp.where(slots.active & ~slots.slide, gain, 0)) >= 0
    if draft is not None:
        found, state = _proposed(draft, state, config, guesses, pays)
    assert found is not None

    def plain(state: State) -> State:
        return plain_step(params, state, row, config)

    def guessing(state: State) -> State:
        return _verify(params, state, row, config, found)

    chosen = same_bits(params, config, len(slots.token), guesses)
    guess = ~slots.slide & (pays if chosen else True)
    state = _among(guess, guessing, _among(~guess, plain, state))
    drawn = (state.slots.position - slots.position).astype(jnp.float32)
    # A draft model that was spared knows no more what was drawn: it stays given up.
    again = (start - expected) / PATIENCE if draft is None else 0.0
    pace = expected + jnp.where(pays, (drawn - expected) / WINDOW, again)
    kept = dataclasses.replace(state.slots, pace=jnp.where(likely, pace, slots.pace))
    return dataclasses.replace(state, slots=kept)


def same_bits(params: Params[Array], config: ModelConfig, slots: int, guesses: int) -> bool:
    """Whether a slot's bits do not tell by whose sake a step was a plain one or a guessing one.

    With one slot it is its own tokens that decide.
    """
    return slots == 1 or any_step_alike(params, config, slots, guesses)


def any_step_alike(params: Params[Array], config: ModelConfig, slots: int, guesses: int) -> bool:
    """Whether a plain step and a guessing one give the same bits, as by our native programs.

    What is left to XLA is the same for eight rows or a multiple of them: not for one and a few.
    """
    reads = guesses + 1
    return (
        kernels.in_use()
        and slots % 8 == 0
        and slots * reads <= kernels.most_rows(params.embedding.dtype)
        and reads <= kernels.MOST_QUERIES
        and not config.d_head % kernels.LANES
    )


def _among(mask: Bool[Array, " slots"], step: Callable[[State], State], state: State) -> State:
    """`step` for those slots alone, if one of them is active."""
    active = state.slots.active

    def run() -> State:
        after = step(_with_active(state, active & mask))
        return _with_active(after, jnp.where(mask, after.slots.active, active))

    return jax.lax.cond(jnp.any(active & mask), run, lambda: state)


def _with_active(state: State, active: Bool[Array, " slots"]) -> State:
    slots = dataclasses.replace(state.slots, active=active)
    return dataclasses.replace(state, slots=slots)


def _verify(
    params: Params[Array],
    state: State,
    row: Int[Array, ""],
    config: ModelConfig,
    guessed: Int[Array, "slots guesses"],
) -> State:
    """Draw at the last token's place, and on at each guess's as long as it was what was drawn."""
    before, last = state.slots, guessed.shape[1]
    read = jnp.concatenate([before.token[:, None], jnp.maximum(guessed, 0)], axis=1)
    hidden, own = forward(
        params, state.cache[: config.layers], read, before.position, config,
        adapter=before.adapter,
        active=before.active,
    )  # fmt: skip
    rows = reshard(logits(params, hidden, config), "batch", None, None)
    right = jnp.pad(guessed, [(0, 0), (0, 1)], constant_values=-1)

    def draw(carry: tuple[Array, Array, State]) -> tuple[Array, Array, State]:
        index, alive, state = carry
        going = state.slots.active
        here = jax.lax.dynamic_index_in_dim(rows, index, 1, keepdims=False)
        guess = jax.lax.dynamic_index_in_dim(right, index, 1, keepdims=False)
        state = _draw(here, state, row + index, config)
        after = state.slots
        alive = jnp.where(going, after.active, alive)
        return index + 1, alive, _with_active(state, after.active & (after.token == guess))

    def is_left(carry: tuple[Array, Array, State]) -> Array:
        return (carry[0] <= last) & jnp.any(carry[-1].slots.active)

    state = dataclasses.replace(state, cache=(*own, *state.cache[config.layers :]))
    begin = (jnp.zeros((), jnp.int32), before.active, state)
    _, alive, state = jax.lax.while_loop(is_left, draw, begin)
    return _with_active(state, alive)


def _proposed(
    draft: Draft, state: State, config: ModelConfig, guesses: int, pays: Bool[Array, ""]
) -> tuple[Int[Array, "slots guesses"], State]:
    """What a draft model guesses where that pays, else -1; and the state after that."""
    own, theirs = state.cache[: config.layers], state.cache[config.layers :]
    slots = dataclasses.replace(state.slots, active=state.slots.active & state.slots.guessing)
    shape = (len(slots.token), guesses)
    none = jnp.full(shape, -1, jnp.int32, out_sharding=spec("batch", None))

    def run() -> tuple[Array, Cache]:
        return _propose(draft, theirs, slots, none, config)

    found, theirs = jax.lax.cond(pays & jnp.any(slots.active), run, lambda: (none, theirs))
    return found, dataclasses.replace(state, cache=(*own, *theirs))


def _propose(
    draft: Draft, cache: Cache, slots: Slots, none: Int[Array, "slots guesses"], config: ModelConfig
) -> tuple[Int[Array, "slots guesses"], Cache]:
    """What the draft model draws, by the very numbers that the model is going to draw with.

    It also reads its last guess, in case the model is of the same mind.
    """

    def step(index: Array, carry: tuple[Array, Slots, Cache]) -> tuple[Array, Slots, Cache]:
        guessed, slots, cache = carry
        hidden, cache = forward(
            draft.params, cache, slots.token[:, None], slots.position, draft.config,
            active=slots.active,
        )  # fmt: skip
        rows = reshard(logits(draft.params, hidden, draft.config)[:, 0], "batch", None)
        missing = slots.bias.shape[-1] - rows.shape[-1]  # their padding may differ
        rows = jnp.pad(rows[:, : slots.bias.shape[-1]], [(0, 0), (0, max(0, missing))])
        token = sample(rows, slots, config.vocab_size)
        is_column = jnp.arange(guessed.shape[1]) == index
        guessed = jnp.where(is_column & slots.active[:, None], token[:, None], guessed)
        return guessed, dataclasses.replace(slots, token=token, position=slots.position + 1), cache

    steps = none.shape[1] + 1
    guessed, _, cache = jax.lax.fori_loop(0, steps, step, (none, slots, cache))
    return guessed, cache


def look_up(
    history: Int[Array, " positions"], position: Int[Array, ""], count: int
) -> Int[Array, " count"]:
    """What followed when the last few tokens were last seen; -1 where that is not known.

    Args:
      history: a sequence's tokens, known up to `position`.
    """
    at, ends = jnp.arange(history.shape[0]), jnp.array(-1)
    for size in NGRAMS:
        same = (at >= size - 1) & (at < position) & (position >= size)
        for back in range(size):
            token = jax.lax.dynamic_index_in_dim(history, position - back, keepdims=False)
            same &= jnp.roll(history, back) == token
        ends = jnp.where(ends >= 0, ends, jnp.max(jnp.where(same, at, -1)))
    followed = jax.lax.dynamic_slice(jnp.pad(history, (0, count)), (ends + 1,), (count,))
    is_known = (ends >= 0) & (ends + 1 + jnp.arange(count) <= position)
    return jnp.where(is_known, followed, -1)


def _draw(
    rows: Float[Array, "slots vocab"], state: State, row: Int[Array, ""], config: ModelConfig
) -> State:
    """A token for every active slot by its logits, put into that row."""
    slots, rows = state.slots, reshard(rows, "batch", None)
    token = sample(rows, slots, config.vocab_size)
    found = jax.lax.cond(
        jnp.any(slots.active & slots.alternatives),
        lambda: LogProbs(
            *map(whole, log_probabilities(rows, token, config.vocab_size, jnp.array(True)))
        ),
        lambda: no_log_probs((len(token),), config),
    )
    mine = whole(slots.active)

    def put(kept: Array, new: Array) -> Array:
        old = jax.lax.dynamic_index_in_dim(kept, row, 0, keepdims=False)
        chosen = jnp.where(mine.reshape(-1, *[1] * (new.ndim - 1)), new, old)
        return jax.lax.dynamic_update_index_in_dim(kept, chosen, row, 0)

    return dataclasses.replace(
        state,
        slots=_advance(slots, token),
        tokens=put(state.tokens, whole(token)),
        found=jax.tree.map(put, state.found, found),
    )


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
    next_place = jnp.arange(slots.history.shape[-1]) == (slots.position + 1)[:, None]
    return dataclasses.replace(
        slots,
        token=jnp.where(slots.active, token, slots.token),
        position=slots.position + one,
        active=slots.active & ~ended & (slots.remaining > 1),
        remaining=slots.remaining - one,
        required=slots.required - one,
        drawn=drawn,
        history=jnp.where(next_place & slots.active[:, None], token[:, None], slots.history),
    )


def whole(x: Array) -> Array:
    """The same on every device."""
    return reshard(x, *[None] * x.ndim)


def no_log_probs(shape: tuple[int, ...], config: ModelConfig) -> LogProbs:
    """Zeros in their place, for all of `shape`."""
    top = (*shape, min(MOST_ALTERNATIVES, config.padded_vocab_size))
    zeros = jnp.zeros(shape), jnp.zeros(top), jnp.zeros(top, jnp.int32)
    return LogProbs(*map(whole, zeros))
