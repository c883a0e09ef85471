"""Beam search: the likeliest whole completions, found by following several beginnings at once."""

from __future__ import annotations

import dataclasses
import functools
import heapq
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gptj.config import ModelConfig
from gptj.dense import sum_last
from gptj.engine.cache import Cache
from gptj.engine.device import Device
from gptj.engine.forward import forward
from gptj.errors import UserError
from gptj.model import Params, logits
from gptj.sharding import batch_ways, reshard

EarlyStopping = Literal["never", "hopeless", "full"]


@dataclasses.dataclass(frozen=True)
class BeamParams:
    """How completions are searched for and compared.

    A completion's score is its log-probability over its length to the power of `length_penalty`.
    """

    beams: int = 4
    """How many beginnings are followed, and how many ends are kept."""
    max_tokens: int = 128
    """Longest completion, in tokens."""
    length_penalty: float = 1.0
    """0 compares whole log-probabilities, 1 those a token; above 0 favours long completions."""
    early_stopping: EarlyStopping = "hopeless"
    """The search stops when the best beginning, were it to end now, would not beat the worst end
    that is kept (`hopeless`); when it would not at any length (`never` too early); or as soon as
    `beams` ends are known (`full`)."""
    n: int = 1
    """How many of the best are given."""

    def __post_init__(self) -> None:
        for name in ("beams", "max_tokens", "n"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.n > self.beams:
            raise UserError(f"n={self.n} must be at most beams={self.beams}")
        if not np.isfinite(self.length_penalty):
            raise UserError(f"length_penalty={self.length_penalty} must be a finite number")
        if self.early_stopping not in ("never", "hopeless", "full"):
            raise UserError(
                f"early_stopping={self.early_stopping!r} must be `never`, `hopeless` or `full`"
            )


@dataclasses.dataclass(frozen=True, order=True)
class Ending:
    """A completion that was found, by its score."""

    score: float
    tokens: list[int] = dataclasses.field(compare=False)
    """Without the end-of-text token."""
    ended: bool = dataclasses.field(compare=False)
    """Whether the model ended it; else there was no more room."""


def beam_search(
    params: Params[Array],
    config: ModelConfig,
    prompt: list[int],
    beam: BeamParams,
    eos: int | None,
    chunk: int = 128,
) -> list[Ending]:
    """The best `n` completions of a prompt, best first, computed in the dtype of the weights.

    Raises:
      UserError: the prompt leaves no room in the model's context, or the mesh that is set splits
        the batch, which the beams would have to cross.
    """
    if batch_ways() > 1:
        raise UserError("beam search needs a mesh with data=1 and fsdp=1: use tensor alone")
    if not 0 < len(prompt) < config.context:
        raise UserError(
            f"the prompt has {len(prompt)} tokens and the model's context is {config.context}: "
            f"give 1 to {config.context - 1}"
        )
    room = min(beam.max_tokens, config.context - len(prompt))
    device = _read(params, config, prompt, beam.beams, len(prompt) + room, chunk)
    search = _Search(beam, room, eos)
    last = np.full(beam.beams, prompt[-1], np.int32)
    parents = np.zeros(beam.beams, np.int32)  # of the first step: the slot that was read
    for step in range(room):
        position = np.int32(len(prompt) - 1 + step)
        *found, device.cache = _follow(
            device.params, device.cache, last, position, parents, search.scores, config
        )
        last, parents = search.take(*(np.asarray(x).tolist() for x in found))
        if search.is_over:
            break
    return sorted(search.endings, reverse=True)[: beam.n]


def _read(
    params: Params[Array],
    config: ModelConfig,
    prompt: list[int],
    slots: int,
    positions: int,
    chunk: int,
) -> Device:
    """A device whose first slot holds all of the prompt but its last token."""
    device = Device(params, config, slots=slots, positions=positions, chunk=chunk, burst=1)
    for begin in range(0, len(prompt) - 1, chunk):
        device.read([(0, begin, prompt[begin : begin + chunk + 1])], chunk, 0)
    return device


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _follow(
    params: Params[Array],
    cache: Cache,
    tokens: Int[Array, " beams"],
    position: Int[Array, ""],
    parents: Int[Array, " beams"],
    scores: Float[Array, " beams"],
    config: ModelConfig,
) -> tuple[Array, Array, Array, Cache]:
    """The best `2 * beams` ways to go on: log-probability, beam and token of each, best first.

    Each beam is the one among `parents` that it goes on from, and reads its token.
    """
    cache = jax.tree.map(lambda rows: rows.at[parents].get(out_sharding=_layout(rows)), cache)
    beams = tokens.shape[0]
    start = jnp.broadcast_to(position, (beams,))
    hidden, cache = forward(params, cache, tokens[:, None], start, config)
    last = reshard(logits(params, hidden, config)[:, 0], None, None)[:, : config.vocab_size]
    largest = jnp.max(last, axis=-1, keepdims=True)
    own = last - largest - jnp.log(sum_last(jnp.exp(last - largest), None))
    total, at = jax.lax.top_k((own + scores[:, None]).reshape(-1), 2 * beams)
    return total, at // config.vocab_size, at % config.vocab_size, cache


def _layout(x: Array) -> jax.sharding.PartitionSpec | None:
    empty = jax.sharding.get_abstract_mesh().empty
    return None if empty else jax.typeof(x).sharding.spec


class _Search:
    """The beginnings that are followed, and the ends that are kept."""

    def __init__(self, beam: BeamParams, room: int, eos: int | None) -> None:
        # One beginning at first: all beams would otherwise be the same one.
        self.scores = np.full(beam.beams, -1e9, np.float32)
        self.scores[0] = 0
        self.endings: list[Ending] = []
        self.is_over = False
        self._beam, self._room, self._eos = beam, room, eos
        self._beginnings: list[list[int]] = [[] for _ in range(beam.beams)]
        self._hopeless = False

    def take(
        self, totals: list[float], parents: list[int], tokens: list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose among the ways to go on; returns the beams' new tokens and their parents."""
        length = len(self._beginnings[0]) + 1
        goes_on = []
        ways = list(zip(totals, parents, tokens, strict=True))
        for rank, (total, parent, token) in enumerate(ways):
            ended = token == self._eos
            if not ended and length < self._room:
                goes_on.append((total, parent, token))
            elif rank < self._beam.beams:
                self._keep(total, self._beginnings[parent], token, ended)
        goes_on = goes_on[: self._beam.beams]
        if not goes_on:
            self.is_over = True
            return np.zeros(0, np.int32), np.zeros(0, np.int32)
        while len(goes_on) < self._beam.beams:  # fewer tokens than beams: the rest lead nowhere
            goes_on.append((-1e9, goes_on[0][1], goes_on[0][2]))
        self._beginnings = [[*self._beginnings[parent], token] for _, parent, token in goes_on]
        self.scores = np.array([total for total, _, _ in goes_on], np.float32)
        self._decide(length)
        last = np.array([token for _, _, token in goes_on], np.int32)
        return last, np.array([parent for _, parent, _ in goes_on], np.int32)

    def _keep(self, total: float, beginning: list[int], token: int, ended: bool) -> None:
        full = len(self.endings) == self._beam.beams
        if self._hopeless or (full and self._beam.early_stopping == "full"):
            return
        score = total / (len(beginning) + 1) ** self._beam.length_penalty
        found = Ending(score, beginning if ended else [*beginning, token], ended)
        if not full:
            heapq.heappush(self.endings, found)
        else:
            heapq.heappushpop(self.endings, found)

    def _decide(self, length: int) -> None:
        """Whether to go on, with beginnings of this length."""
        if len(self.endings) < self._beam.beams:
            return
        penalty = self._beam.length_penalty
        best = self._room if self._beam.early_stopping == "never" and penalty > 0 else length
        if float(self.scores[0]) / best**penalty <= self.endings[0].score:
            self._hopeless = True
        self.is_over = self._hopeless or self._beam.early_stopping == "full"
