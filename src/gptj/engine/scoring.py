"""How likely a model holds texts that are already there: tokens after a context."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int

from gptj.attention import causal_attention
from gptj.config import ModelConfig
from gptj.engine.device import apart
from gptj.engine.packing import Asked, Row, pack
from gptj.engine.sampling import log_normaliser
from gptj.engine.step import whole
from gptj.errors import UserError
from gptj.model import Params, hidden_states, logits
from gptj.sharding import batch_ways, place, reshape, reshard

TOKENS = 4096
"""Tokens that each part of a mesh reads at a time; a CPU reads one row."""

TARGETS = 256
"""Scored tokens of a row whose logits are held at a time, or a quarter of the row."""


class Score(NamedTuple):
    """How likely a continuation is."""

    logprob: float
    """Its log-probability in nats, summed over its tokens; padding rows of the vocabulary are not
    among the alternatives."""
    greedy: bool
    """Whether no token is likelier than its own, wherever one of them stands."""


def score(
    params: Params[Array],
    config: ModelConfig,
    asked: Sequence[Asked],
    on_score: Callable[[int, Score], None] | None = None,
) -> list[Score]:
    """Score each continuation given its context, on the mesh that is set.

    What some begin with in common is read once for those that stand in one row, and logits are made
    of the scored tokens alone.

    Args:
      asked: a context and its continuation have together at most `config.context + 1` tokens.
      on_score: called with an index in `asked` and its score, as each becomes known.

    Raises:
      UserError: a context is empty, or a text is too long.
    """
    for number, each in enumerate(asked):
        _check(number, each, config)
    found: dict[int, Score] = {}
    underway: list[tuple[list[Row], tuple[Array, Array]]] = []

    def take(rows: list[Row], scores: tuple[Array, Array]) -> None:
        for number, each in _scores(rows, asked, *map(np.asarray, scores)):
            found[number] = each
            if on_score:
                on_score(number, each)

    params = apart(params)
    for rows in _batches(pack(asked)):
        underway.append((rows, _run(params, rows, config)))
        if len(underway) > 1:  # the next is on its way while these are looked at
            take(*underway.pop(0))
    for left in underway:
        take(*left)
    return [found[number] for number in range(len(asked))]


@functools.partial(jax.jit, static_argnames="config")
def log_probs(
    params: Params[Array],
    tokens: Int[Array, "rows length"],
    positions: Int[Array, "rows length"],
    ends: Int[Array, "rows length"],
    places: Int[Array, "rows length"],
    targets: Int[Array, "rows length"],
    most: Int[Array, ""],
    config: ModelConfig,
) -> tuple[Float32[Array, "rows length"], Bool[Array, "rows length"]]:
    """Of each of the first `most` targets, in nats, and whether none is likelier.

    `gptj.engine.packing.Row` says what the rows hold. The results come back whole on every device.
    """
    attend = functools.partial(causal_attention, ends=ends)
    dtype = params.embedding.dtype
    hidden = hidden_states(params, tokens, config, dtype=dtype, positions=positions, attend=attend)
    chunk = min(TARGETS, tokens.shape[1] // 4)

    def cut(x: Array, index: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=1)

    def add(index: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        after = jax.vmap(lambda states, at: states[at])(hidden, cut(places, index))
        rows = reshard(logits(params, after, config), "batch", None, None)
        rows = reshape(rows, (-1, rows.shape[-1]), "batch", None)[:, : config.vocab_size]
        wanted = reshape(cut(targets, index), (-1,), "batch")
        own = jax.vmap(lambda row, token: row[token])(rows, wanted)
        total = log_normaliser(rows)[:, 0]

        def put(of_all: Array, new: Array) -> Array:
            new = reshape(new, after.shape[:2], "batch", None)
            return jax.lax.dynamic_update_slice_in_dim(of_all, new, index * chunk, axis=1)

        return put(found[0], own - total), put(found[1], own >= jnp.max(rows, axis=-1))

    start = jnp.zeros_like(targets, jnp.float32), jnp.zeros_like(targets, bool)
    own, likeliest = jax.lax.fori_loop(0, -(-most // chunk), add, start)
    return whole(own), whole(likeliest)


def _check(number: int, asked: Asked, config: ModelConfig) -> None:
    length = len(asked.tokens)
    if not 0 < asked.scored < length:
        raise UserError(
            f"{asked.scored} of the {length} tokens of text {number} are to be scored: one at "
            "least, and one before it, must be there"
        )
    if length > config.context + 1:
        raise UserError(
            f"text {number} has {length} tokens, and the model's window of {config.context} holds "
            "all but the last: leave out the beginning of its context"
        )


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Rows of one length, as many at a time as are read together."""
    for length, alike in itertools.groupby(rows, lambda row: len(row.tokens)):
        each = 1 if jax.default_backend() == "cpu" else max(1, TOKENS // length)
        while batch := list(itertools.islice(alike, each * batch_ways())):
            yield batch + [Row.empty(length)] * (-len(batch) % (each * batch_ways()))


def _run(params: Params[Array], rows: list[Row], config: ModelConfig) -> tuple[Array, Array]:
    names = ("tokens", "positions", "ends", "places", "targets")
    arrays = (np.stack([getattr(row, name) for row in rows]) for name in names)
    most = np.int32(max(row.scored for row in rows))
    own, likeliest = log_probs(params, *(place(x, "batch", None) for x in arrays), most, config)
    return own, likeliest


def _scores(
    rows: list[Row],
    asked: Sequence[Asked],
    logprobs: Float32[np.ndarray, "rows length"],
    likeliest: Bool[np.ndarray, "rows length"],
) -> Iterator[tuple[int, Score]]:
    """The texts of some rows, by number, and their scores."""
    for number_of_row, row in enumerate(rows):
        begin = 0
        for number in row.texts:
            part = slice(begin, begin := begin + asked[number].scored)
            total = float(np.sum(logprobs[number_of_row, part], dtype=np.float64))
            yield number, Score(total, bool(likeliest[number_of_row, part].all()))
