"""What the devices know of each slot: where its completion stands and how it is drawn."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from gptj.config import ModelConfig
from gptj.engine.request import SamplingParams


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """One value a slot, so that a decode step needs nothing from the host.

    A slot that is not active goes through the motions: what it writes into the cache lies at its
    position, where the next to come writes over it.
    """

    token: Int[Array, " slots"]
    """The last token known, which the next step reads."""
    position: Int[Array, " slots"]
    """Where in its sequence `token` stands."""
    active: Bool[Array, " slots"]
    remaining: Int[Array, " slots"]
    """How many tokens it may still draw."""
    required: Int[Array, " slots"]
    """How many it must still draw before one may end it."""
    slide: Bool[Array, " slots"]
    """Past the context's end it goes on over a ring."""
    seed: UInt32[Array, " slots"]
    choice: Int[Array, " slots"]
    """Which of its request's completions it is."""
    adapter: Int[Array, " slots"]
    """Which of the adapters beside the weights it has, from 1; 0 is none."""
    temperature: Float[Array, " slots"]
    top_k: Int[Array, " slots"]
    top_p: Float[Array, " slots"]
    min_p: Float[Array, " slots"]
    typical_p: Float[Array, " slots"]
    repetition_penalty: Float[Array, " slots"]
    presence_penalty: Float[Array, " slots"]
    frequency_penalty: Float[Array, " slots"]
    guessing: Bool[Array, " slots"]
    """Whether its next tokens are guessed ahead."""
    pace: Float[Array, " slots"]
    """Tokens drawn in a guessing step, averaged over its last few; 0 before the first."""
    guided: Bool[Array, " slots"]
    """Whether it draws only what `allowed` says."""
    biased: Bool[Array, " slots"]
    """Whether `bias` holds anything."""
    alternatives: Bool[Array, " slots"]
    """Whether log-probabilities are wanted."""
    bias: Float[Array, "slots vocab"]
    """Added to the logits; minus infinity for what is never drawn."""
    ends: Bool[Array, "slots vocab"]
    """The tokens that end it."""
    allowed: Bool[Array, "slots vocab"]
    """What may come next by its schema, regular expression or grammar."""
    in_prompt: Bool[Array, "slots vocab"]
    drawn: Int[Array, "slots vocab"]
    """How often it has drawn each token."""
    history: Int[Array, "slots positions"]
    """Its tokens up to `position`, where guesses are looked up in them; else no positions."""

    @property
    def penalised(self) -> Bool[Array, " slots"]:
        """Where a penalty is on."""
        return (
            (self.repetition_penalty != 1)
            | (self.presence_penalty != 0)
            | (self.frequency_penalty != 0)
        )

    @property
    def filtered(self) -> Bool[Array, " slots"]:
        """Where some tokens are left out of the draw."""
        return (self.top_k > 0) | (self.top_p < 1) | (self.min_p > 0) | (self.typical_p < 1)


_NUMBERS = (
    *("temperature", "top_p", "min_p", "typical_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)


def one_slot(
    config: ModelConfig,
    prompt: list[int],
    sampling: SamplingParams,
    *,
    eos: int | None,
    choice: int = 0,
    adapter: int = 0,
    room: int | None = None,
    active: bool = True,
    guessing: bool = False,
    history: int = 0,
    allowed: np.ndarray | None = None,
) -> Slots:
    """A slot's values on the host, each without the leading dim.

    Args:
      prompt: at least one token.
      adapter: which of those beside the weights, from 1; 0 is none.
      room: the most tokens it may draw, when fewer than `max_tokens`.
      guessing: whether its next tokens are guessed ahead.
      history: for how many tokens there is room where guesses are looked up.
      allowed: by token whether it may come next, where the completion is guided.
    """
    vocab = config.padded_vocab_size
    ends, in_prompt = np.zeros(vocab, bool), np.zeros(vocab, bool)
    ends[list(sampling.ends(eos))] = True
    in_prompt[prompt] = True
    bias = np.zeros(vocab, np.float32)
    if sampling.allowed_tokens is not None:
        free = ends.copy()
        free[list(sampling.allowed_tokens)] = True
        bias[~free] = -np.inf
    _add_bias(sampling, bias)
    i32 = np.int32
    values: dict[str, Any] = {
        "token": i32(prompt[-1]),
        "position": i32(len(prompt) - 1),
        "active": np.bool_(active),
        "remaining": i32(sampling.max_tokens if room is None else room),
        "required": i32(sampling.min_tokens),
        "slide": np.bool_(sampling.overflow == "slide"),
        "seed": np.uint32(sampling.seed),
        "choice": i32(choice),
        "adapter": i32(adapter),
        "top_k": i32(sampling.top_k),
        "guessing": np.bool_(guessing),
        "pace": np.float32(0),
        "guided": np.bool_(allowed is not None),
        "biased": np.bool_(bias.any()),
        "alternatives": np.bool_(sampling.logprobs is not None or sampling.drawn > sampling.n),
        "bias": bias,
        "ends": ends,
        "allowed": np.ones(vocab, bool) if allowed is None else allowed,
        "in_prompt": in_prompt,
        "drawn": np.zeros(vocab, i32),
        "history": np.array((prompt + [0] * history)[:history], i32),
        **{name: np.float32(getattr(sampling, name)) for name in _NUMBERS},
    }
    return Slots(**values)


def _add_bias(sampling: SamplingParams, bias: np.ndarray) -> None:
    """Add to each token's logit what the request says of it."""
    for token, value in sampling.logit_bias.items():
        bias[token] += value
    bias[list(sampling.banned_tokens)] = -np.inf
