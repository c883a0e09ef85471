"""What a step minimises: rows to their loss, and what is measured of them beside it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float, Int

from gptj.adapters import NO_LORA, LoRAConfig
from gptj.attention import Backend, causal_attention, document_ends
from gptj.config import ModelConfig
from gptj.cross_entropy import TokenLosses, ZLoss
from gptj.data.packing import BEGINS
from gptj.errors import UserError
from gptj.model import Attend, Params, losses
from gptj.remat import Remat
from gptj.train.preferences import Preferences, answers, preferences

DPO_BETA = 0.1
"""Where data are preferences and nobody says another."""


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """How a step computes, beside what it learns."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the layers compute in. Weights, moments and the loss are float32 either way. With
    gptj-2021, what the weights are rounded to; its layers compute in float32."""
    remat: Remat = "none"
    """What the backward pass recomputes to save memory: `none`, all but matrix products (`dots`),
    or whole layers (`block`), whose inputs `offload` keeps in the host's memory meanwhile."""
    attention: Backend | None = None
    """What computes attention: cuDNN's fused program, our native one on a CPU, splash attention on
    a TPU, or XLA's. Default: cuDNN or ours where it can, else XLA."""
    isolate: bool = False
    """Documents that stand in one row do not see one another."""
    end_of_text: tyro.conf.Suppress[int] = 50256
    """The token between them, GPT-2's; `gptj train` takes that of the data's tokenizer."""
    examples: tyro.conf.Suppress[bool] = False
    """Rows hold whole examples, which never see one another, and what is only read of them comes
    as its complement (`gptj.data.store.ids_of`). `gptj train` knows by the data."""
    pairs: tyro.conf.Suppress[bool] = False
    """Each of those rows is two, an answer that is preferred and one that is not."""
    dpo_beta: float | None = None
    """Of data of preferences, how much it counts that a preferred answer became likelier, and so
    how near the model stays to what it was. Default: 0.1."""
    z_loss: float = 1e-4
    """Coefficient of the squared log-normaliser added to the loss, which keeps long runs steady."""
    lora: LoRAConfig = NO_LORA
    spike_sigma: float | None = None
    """An update is skipped where the loss or the gradient's norm is so many standard deviations
    above the mean of the last 128 that were not; 0 skips only what is not finite. Default: 6, and
    0 with gptj-2021."""

    def __post_init__(self) -> None:
        if self.dpo_beta is not None and not 0 < self.dpo_beta < math.inf:
            raise UserError(f"dpo_beta={self.dpo_beta} must be above 0, and finite")
        for name in ("z_loss", "spike_sigma"):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise UserError(f"{name}={value} must not be below 0")


class Microbatch(NamedTuple):
    """Rows that are computed at a time, or all of them with one more dim."""

    rows: Int[Array, "batch length+1"]
    counts: Float[Array, "batch length"] | None
    """What each target counts in the mean over it, 0 where it is only read; alike without."""
    number: Int[Array, ""]


class Measured(NamedTuple):
    """Of a microbatch; no gradient flows from it. Scalars are means, in nats but for `accuracy`."""

    loss: Float[Array, ""]
    last_loss: Float[Array, ""] | None
    z_loss: Float[Array, ""]
    accuracy: Float[Array, ""] | None
    margin: Float[Array, ""] | None
    row_losses: Float[Array, " batch"]


Objective = Callable[[Params[Array], Microbatch], tuple[Float[Array, ""], Measured]]
"""Weights and rows to what is differentiated, and what is measured."""


def objective(
    model: ModelConfig, config: StepConfig, original: bool, base: Params[Array] | None
) -> Objective:
    """What a step minimises.

    Args:
      original: as the original trainer computed it.
      base: the weights without their adapters, which preferences are told by.
    """
    if config.pairs:
        assert base is not None
        return functools.partial(_preference_loss, reference=base, model=model, config=config)
    loss = _original_loss if original else token_losses
    return functools.partial(_token_loss, how=functools.partial(loss, model=model, config=config))


def learnt(
    tokens: Int[Array, "*accumulate batch length+1"],
) -> tuple[Int[Array, "*accumulate batch length+1"], Float[Array, "*accumulate batch length"]]:
    """The ids of examples, and which targets are learnt, each 1; the others, only read, are 0.

    `BEGINS` stays in the ids where it is: see `ids_in`.
    """
    ids = jnp.where(tokens < 0, ~tokens, tokens)
    return ids, (tokens[..., 1:] >= 0).astype(jnp.float32)


def parts_of(tokens: Int[Array, "accumulate batch length+1"], config: StepConfig) -> Microbatch:
    """The microbatches of a step; of examples all that is learnt counts alike, in whichever."""
    counts = None
    if config.examples and not config.pairs:
        tokens, counts = learnt(tokens)
        counts *= tokens.shape[0] / jnp.sum(counts)
    return Microbatch(tokens, counts, jnp.arange(tokens.shape[0], dtype=jnp.int32))


def attend_in(rows: Int[Array, "batch length+1"], config: StepConfig) -> Attend:
    """How the inputs in some rows see one another."""
    ends = None
    if config.examples and not config.pairs:  # a pair's answers have each a row to themselves
        ends = document_ends(rows[:, :-1] & BEGINS != 0)
    elif config.isolate:
        ends = document_ends(rows[:, :-1] == config.end_of_text)
    return functools.partial(causal_attention, ends=ends, backend=config.attention)


def ids_in(rows: Int[Array, "batch length+1"], config: StepConfig) -> Int[Array, "batch length+1"]:
    """The ids in some rows, which of examples also say where one begins."""
    return rows & ~BEGINS if config.examples else rows


def _token_loss(
    params: Params[Array], part: Microbatch, *, how: Callable[..., tuple[Array, TokenLosses]]
) -> tuple[Float[Array, ""], Measured]:
    """The mean loss of tokens."""
    counts = part.counts
    loss, (nll, z_loss) = how(params, part.rows, counts)
    if counts is None:
        means = jnp.mean(nll), jnp.mean(nll[:, -1]), jnp.mean(z_loss), None, None
        return loss, Measured(*means, jnp.mean(nll, axis=-1))
    after = jnp.cumsum(counts[:, ::-1] > 0, axis=1)[:, ::-1]  # how many from here on are learnt
    last = jnp.sum(jnp.where((after == 1) & (counts > 0), nll, 0), axis=1)
    means = jnp.sum(counts * nll), jnp.mean(last), jnp.sum(counts * z_loss), None, None
    return loss, Measured(*means, jnp.sum(counts * nll, axis=-1) / jnp.sum(counts, axis=-1))


def preference_losses(
    params: Params[Array],
    reference: Params[Array],
    rows: Int[Array, "answers length+1"],
    counts: Float[Array, "answers length"],
    *,
    model: ModelConfig,
    config: StepConfig,
) -> Preferences:
    """What pairs say of a model, beside the one that it was."""
    assert config.dpo_beta is not None

    def answer_nll(params: Params[Array]) -> Float[Array, " answers"]:
        quiet = dataclasses.replace(config, z_loss=0.0)
        _, (nll, _) = token_losses(params, rows, counts, model=model, config=quiet)
        return jnp.sum(counts * nll, axis=-1)

    return preferences(answer_nll(params), answer_nll(reference), config.dpo_beta)


def _preference_loss(
    params: Params[Array],
    part: Microbatch,
    *,
    reference: Params[Array],
    model: ModelConfig,
    config: StepConfig,
) -> tuple[Float[Array, ""], Measured]:
    """The mean loss of pairs.

    What it pulls each answer by is only known once both have been read, so they are read again:
    what is differentiated is the answers' likelihoods, each times its pull.
    """
    rows, counts = learnt(answers(part.rows))
    config = dataclasses.replace(config, z_loss=0.0)
    found = jax.lax.stop_gradient(
        preference_losses(params, reference, rows, counts, model=model, config=config)
    )
    share = found.pull / len(found.loss)
    loss, _ = token_losses(params, rows, counts * share[:, None], model=model, config=config)
    right = jnp.mean((found.margin > 0).astype(jnp.float32))
    means = jnp.mean(found.loss), None, jnp.zeros(()), right, jnp.mean(found.margin)
    return loss, Measured(*means, found.loss)


def token_losses(
    params: Params[Array],
    rows: Int[Array, "batch length+1"],
    counts: Float[Array, "batch length"] | None = None,
    *,
    model: ModelConfig,
    config: StepConfig,
) -> tuple[Float[Array, ""], TokenLosses]:
    """The loss of some rows, and each token's parts of it."""
    return losses(
        params,
        ids_in(rows, config),
        model,
        weights=counts,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        z_loss=ZLoss(config.z_loss),
        attend=attend_in(rows, config),
    )


def _original_loss(
    params: Params[Array],
    rows: Int[Array, "batch length+1"],
    counts: Float[Array, "batch length"] | None = None,
    *,
    model: ModelConfig,
    config: StepConfig,
) -> tuple[Float[Array, ""], TokenLosses]:
    """The same as the original computed it.

    Weights rounded (and by the rounding's transpose their gradients), activations in float32, the
    padding rows of the vocabulary in the normaliser, the z-loss of the shifted logits.
    """
    bits = jnp.finfo(config.dtype)  # a cast there and back is one that compilers leave out
    rounded = jax.tree.map(lambda x: jax.lax.reduce_precision(x, bits.nexp, bits.nmant), params)
    return losses(
        rounded,
        ids_in(rows, config),
        dataclasses.replace(model, vocab_size=model.padded_vocab_size),
        weights=counts,
        remat=config.remat,
        z_loss=ZLoss(config.z_loss, shifted=True),
        attend=attend_in(rows, config),
    )
