"""How the next token is chosen: temperature, then top-k, then nucleus, then one seeded draw."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from gptj.errors import UserError
from gptj.sharding import reshard, spec

SEEDS = 1 << 32
"""Seeds are 32 bits: JAX would drop the higher ones without a word."""


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn and where they end."""

    temperature: float = 1.0
    """Divides the logits: below 1 sharpens, above 1 flattens, 0 always takes the likeliest."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability; in (0, 1], 1 is off."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0 is off."""
    max_tokens: int = 128
    """Longest completion, in tokens."""
    seed: int = 0
    """The same seed gives the same text; 0 to 4294967295."""
    stop: tuple[str, ...] = ()
    """A completion ends before the first of these strings to appear in it."""

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            if not isinstance(getattr(self, name), numbers.Real):
                raise UserError(f"{name}={getattr(self, name)!r} must be a number")
        for name in ("top_k", "max_tokens", "seed"):
            if not isinstance(getattr(self, name), numbers.Integral):
                raise UserError(f"{name}={getattr(self, name)!r} must be a whole number")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(
                f"temperature={self.temperature} must be a finite number, 0 (greedy) or above"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1 (1 is off)")
        if not 0 <= self.top_k < 1 << 31:
            raise UserError(f"top_k={self.top_k} must be 0 (off) or a number of tokens")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens={self.max_tokens} must be at least 1")
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"seed={self.seed} must be between 0 and {SEEDS - 1}")
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise UserError(f"stop={self.stop!r} must be a tuple of strings, none of them empty")


def row_seeds(seed: int, rows: int) -> UInt32[np.ndarray, " rows"]:
    """A seed for each row of a batch: `seed` itself for row 0, others derived from it.

    A prompt alone and the first of many thus give the same text.
    """

    def derived(row: Int[Array, ""]) -> UInt32[Array, ""]:
        return jax.random.bits(jax.random.fold_in(jax.random.key(seed), row))

    seeds = np.array(jax.vmap(derived)(jnp.arange(rows)))
    seeds[:1] = seed
    return seeds


def sample(
    logits: Float[Array, "batch vocab"],
    seed: UInt32[Array, " batch"],
    position: Int[Array, " batch"],
    temperature: Float[Array, " batch"],
    top_k: Int[Array, " batch"],
    top_p: Float[Array, " batch"],
    vocab_size: int,
) -> Int[Array, " batch"]:
    """One token a row, whatever the other rows are: a function of its logits, seed and position.

    The temperature comes first, so that top-k and nucleus see the distribution that is drawn
    from; the original system filtered before the temperature. Nucleus sampling
    (arXiv:1904.09751) removes a token when those likelier than it exceed `top_p` without it; the
    likeliest always stays. Of equal logits, the lower id counts as the likelier.

    Args:
      seed: see `row_seeds`.
      position: where in its sequence the token will stand.
      temperature: 0 takes the likeliest token.
      top_k: 0 keeps all.
      vocab_size: columns from this one on are never chosen.
    """
    logits = reshard(logits, "batch", None)
    rows = (seed, position, temperature, top_k, top_p)
    seed, position, temperature, top_k, top_p = (reshard(row, "batch") for row in rows)
    columns = jnp.arange(logits.shape[-1])
    # Subtracting the maximum first keeps a tiny temperature from overflowing.
    shifted = logits - jnp.max(logits[:, :vocab_size], axis=-1, keepdims=True)
    scaled = shifted / jnp.where(temperature > 0, temperature, 1)[:, None]
    scaled = jnp.where(columns < vocab_size, scaled, -jnp.inf)
    noise = jax.vmap(functools.partial(_gumbel, columns=logits.shape[-1]))(seed, position)
    # The largest sum of logit and Gumbel noise is a draw from the softmax. The noise belongs to
    # the column, so a row's draw is the same whether or not its batch takes the sort below.
    scores = scaled + jnp.where(temperature[:, None] > 0, noise, 0)
    chosen: Array = jax.lax.cond(
        jnp.any((top_k > 0) | (top_p < 1)),
        lambda: _best_of_kept(scaled, scores, top_k, top_p),
        lambda: jnp.argmax(scores, axis=-1).astype(jnp.int32),
    )
    return chosen


def _gumbel(
    seed: UInt32[Array, ""], position: Int[Array, ""], columns: int
) -> Float[Array, " columns"]:
    return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), (columns,))


def _best_of_kept(
    scaled: Float[Array, "batch vocab"],
    scores: Float[Array, "batch vocab"],
    top_k: Int[Array, " batch"],
    top_p: Float[Array, " batch"],
) -> Int[Array, " batch"]:
    """The column of the largest score among those that top-k, then nucleus, keep."""
    columns = jax.lax.broadcasted_iota(jnp.int32, scaled.shape, 1, out_sharding=spec("batch", None))
    # Sorting all three together spares the gathers that an argsort would need.
    falling, scores, columns = jax.lax.sort((-scaled, scores, columns), num_keys=1)
    rank = jnp.arange(scaled.shape[-1])
    in_top_k = (rank < top_k[:, None]) | (top_k[:, None] == 0)
    probability = jax.nn.softmax(jnp.where(in_top_k, -falling, -jnp.inf), axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    in_nucleus = (before <= top_p[:, None]) | (top_p[:, None] == 1)
    chosen = jnp.argmax(jnp.where(in_top_k & in_nucleus, scores, -jnp.inf), axis=-1)
    return jnp.max(jnp.where(rank == chosen[:, None], columns, 0), axis=-1)
