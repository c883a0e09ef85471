"""How the next token is chosen, on the device: each slot a function of its own logits and values.

Whatever the other slots ask for, a slot takes the same path to its token, so its draws are the
same alone and in company, bit for bit. What no slot asks for is skipped by a branch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from gptj import kernels
from gptj.dense import sum_last
from gptj.engine.request import MOST_ALTERNATIVES
from gptj.engine.slots import Slots
from gptj.sharding import reshard, spec

CANDIDATES = 256
"""Of how many likeliest tokens the filters are first tried; a slot that keeps more is sorted."""

BLOCK = 128
"""Columns whose probabilities are added up before the draw looks into one such block."""

Logits = Float[Array, "slots vocab"]
Tokens = Int[Array, " slots"]


def sample(logits: Logits, slots: Slots, vocab_size: int) -> Tokens:
    """A token a slot; columns from `vocab_size` on are never chosen.

    Of equal logits, the lower id counts as the likelier. The draw is by one uniform number, a pure
    function of the slot's seed, its choice, and the position where the token will stand.
    """
    logits = adjusted(reshard(logits, "batch", None), slots, vocab_size)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    likeliest = _first(logits == largest)
    by_chance = slots.temperature > 0

    def drawn() -> Tokens:
        # Subtracting the maximum first keeps a tiny temperature from overflowing.
        scaled = (logits - largest) / jnp.where(by_chance, slots.temperature, 1)[:, None]
        weights = jnp.exp(scaled)
        uniform = jax.vmap(_uniform)(slots.seed, slots.choice, slots.position + 1)
        plain = _draw_in_blocks(weights, uniform)
        some = jnp.any(slots.active & slots.filtered & by_chance)
        kept = jax.lax.cond(
            some, lambda: _draw_filtered(scaled, weights, uniform, slots), lambda: plain
        )
        return jnp.where(slots.filtered, kept, plain)

    drawn_tokens = jax.lax.cond(jnp.any(slots.active & by_chance), drawn, lambda: likeliest)
    return jnp.where(by_chance, drawn_tokens, likeliest)


def adjusted(logits: Logits, slots: Slots, vocab_size: int) -> Logits:
    """The logits after penalties, bias and bans; minus infinity for what cannot be drawn."""
    early = slots.required > 0
    some = jnp.any(slots.active & (slots.penalised | slots.biased | slots.guided | early))

    def apply() -> Logits:
        seen = slots.in_prompt | (slots.drawn > 0)
        penalty = slots.repetition_penalty[:, None]
        repeated = jnp.where(logits > 0, logits / penalty, logits * penalty)
        # Chosen, not multiplied by one: what is off must leave the very bits.
        x = jnp.where(seen & (penalty != 1), repeated, logits)
        x -= slots.frequency_penalty[:, None] * slots.drawn
        x -= jnp.where(slots.drawn > 0, slots.presence_penalty[:, None], 0)
        never = (slots.ends & early[:, None]) | (slots.guided[:, None] & ~slots.allowed)
        return jnp.where(never, -jnp.inf, x + slots.bias)

    x = jax.lax.cond(some, apply, lambda: logits)
    return jnp.where(jnp.arange(x.shape[-1]) < vocab_size, x, -jnp.inf)


def log_probabilities(
    logits: Float[Array, "rows vocab"],
    tokens: Int[Array, " rows"],
    vocab_size: int,
    with_top: Bool[Array, ""],
) -> tuple[Float[Array, " rows"], Float[Array, "rows top"], Int[Array, "rows top"]]:
    """The token's log-probability in nats, and the likeliest tokens' with their ids, falling.

    The latter are zeros without `with_top`.
    """
    logits = jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, -jnp.inf)
    total = log_normaliser(logits)
    is_token = jnp.arange(logits.shape[-1]) == tokens[:, None]
    own = jnp.max(jnp.where(is_token, logits, -jnp.inf), axis=-1)
    most = min(MOST_ALTERNATIVES, logits.shape[-1])

    def likeliest() -> tuple[Array, Array]:
        top, ids = _top_k(logits, most)
        return top - total, ids

    def none() -> tuple[Array, Array]:
        zeros = jnp.zeros((len(tokens), most), out_sharding=spec("batch", None))
        return zeros, zeros.astype(jnp.int32)

    return own - total[:, 0], *jax.lax.cond(with_top, likeliest, none)


def log_normaliser(logits: Float[Array, "rows vocab"]) -> Float[Array, "rows 1"]:
    """What a row's logits are above the log-probabilities, in nats: the log of their exps' sum."""
    largest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.log(sum_last(jnp.exp(logits - largest), "batch")) + largest


def row_seeds(seed: int, rows: int) -> UInt32[np.ndarray, " rows"]:
    """A seed for each of several prompts: `seed` itself for the first, others derived from it.

    A prompt alone and the first of many thus give the same text.
    """

    def derived(row: Int[Array, ""]) -> UInt32[Array, ""]:
        return jax.random.bits(jax.random.fold_in(jax.random.key(seed), row))

    seeds = np.array(jax.vmap(derived)(jnp.arange(rows)))
    seeds[:1] = seed
    return seeds


def _top_k(x: Float[Array, "rows columns"], count: int) -> tuple[Array, Array]:
    """The largest of each row with their columns, falling; of equals the first."""
    if kernels.in_use():
        return kernels.top_k(x, count)
    values, columns = jax.lax.top_k(x, count)
    return values, columns


def _uniform(seed: Array, choice: Array, position: Array) -> Float[Array, ""]:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), choice), position)
    return jax.random.uniform(key)


def _first(mask: Bool[Array, "slots columns"]) -> Tokens:
    """The first column where `mask` holds; the number of columns where it never does."""
    # A minimum of integers is a vectorised reduction on a CPU, where an argmax is not.
    size = mask.shape[-1]
    return jnp.min(jnp.where(mask, jnp.arange(size), size), axis=-1).astype(jnp.int32)


def _pick(weights: Float[Array, "slots columns"], target: Float[Array, "slots 1"]) -> Tokens:
    """The first column with a weight at which the weights' running sum passes `target`."""
    running = jnp.cumsum(weights, axis=-1)
    found = _first((running > target) & (weights > 0))
    # Rounding can leave the target above every sum: then it is the last column with a weight.
    size = weights.shape[-1]
    last = jnp.max(jnp.where(weights > 0, jnp.arange(size), 0), axis=-1).astype(jnp.int32)
    return jnp.where(found < size, found, last)


def _draw_in_blocks(weights: Logits, uniform: Float[Array, " slots"]) -> Tokens:
    """A draw from all columns: first the block it falls in, then the column."""
    rows, columns = weights.shape
    padded = jnp.pad(weights, [(0, 0), (0, -columns % BLOCK)]).reshape(rows, -1, BLOCK)
    sums = sum_last(padded, "batch", None)[..., 0]
    target = uniform[:, None] * sum_last(sums, "batch")
    block = _pick(sums, target)
    before = jnp.where(jnp.arange(sums.shape[-1]) < block[:, None], sums, 0)
    inside = jax.vmap(lambda row, at: jax.lax.dynamic_index_in_dim(row, at, 0, False))(
        padded, block
    )
    return block * BLOCK + _pick(inside, target - sum_last(before, "batch"))


def _draw_filtered(
    scaled: Logits, weights: Logits, uniform: Float[Array, " slots"], slots: Slots
) -> Tokens:
    """A draw from what top-k, top-p, min-p and typical keep, in that order."""
    whole = sum_last(weights, "batch")
    few, settled = _draw_among(min(CANDIDATES, scaled.shape[-1]), scaled, whole, uniform, slots)
    open_ones = slots.active & slots.filtered & ~settled

    def sorted_whole() -> Tokens:
        return _draw_among(scaled.shape[-1], scaled, whole, uniform, slots)[0]

    many = jax.lax.cond(jnp.any(open_ones), sorted_whole, lambda: few)
    return jnp.where(settled, few, many)


def _draw_among(
    count: int,
    scaled: Logits,
    whole: Float[Array, "slots 1"],
    uniform: Float[Array, " slots"],
    slots: Slots,
) -> tuple[Tokens, Bool[Array, " slots"]]:
    """A draw from the likeliest `count` tokens, and whether the filters kept none beyond them.

    Nucleus sampling (arXiv:1904.09751) removes a token when those likelier than it exceed `top_p`
    without it; the likeliest always stays.
    """
    falling, ids = _top_k(scaled, count)
    limit = jnp.where(slots.top_k > 0, slots.top_k, scaled.shape[-1])[:, None]
    weights = jnp.where(jnp.arange(count) < limit, jnp.exp(falling), 0)
    total = jnp.where(slots.top_k[:, None] > 0, sum_last(weights, "batch"), whole)
    p = weights / total
    before = jnp.cumsum(p, axis=-1) - p
    top_p = slots.top_p[:, None]
    keep = (weights > 0) & ((before <= top_p) | (top_p == 1))
    keep &= p >= slots.min_p[:, None] * p[:, :1]
    settled = jnp.where(slots.top_k > 0, slots.top_k <= count, ~keep[:, -1])
    typical = jnp.any(slots.active & (slots.typical_p < 1))
    keep = jax.lax.cond(typical, lambda: _keep_typical(p, keep, slots.typical_p), lambda: keep)
    kept = jnp.where(keep, p, 0)
    index = _pick(kept, uniform[:, None] * sum_last(kept, "batch"))
    return jnp.max(jnp.where(jnp.arange(count) == index[:, None], ids, 0), axis=-1), settled


def _keep_typical(
    p: Float[Array, "slots count"], keep: Bool[Array, "slots count"], mass: Float[Array, " slots"]
) -> Bool[Array, "slots count"]:
    """Of the tokens kept so far, those of the likeliest surprise that together have `mass`."""
    kept = jnp.where(keep, p, 0)
    kept = kept / sum_last(kept, "batch")
    surprise = jnp.where(keep, -jnp.log(jnp.where(keep, kept, 1)), 0)
    expected = sum_last(kept * surprise, "batch")
    away = jnp.where(keep, jnp.abs(surprise - expected), jnp.inf)
    nearest, shares = jax.lax.sort((away, kept), num_keys=1)
    before, mass = jnp.cumsum(shares, axis=-1) - shares, mass[:, None]
    near = (before <= 0) | (before < mass)  # the nearest stays, however little the mass
    farthest = jnp.max(jnp.where(near, nearest, -jnp.inf), axis=-1, keepdims=True)
    return keep & ((away <= farthest) | (mass == 1))
