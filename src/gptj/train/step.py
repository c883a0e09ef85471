"""One training step: the jitted program that `gptj train` runs, `plan` compiles, `bench` times."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro
from jaxtyping import Array, Float, Int, Key

from gptj.adapters import NO_LORA, Adapters, LoRAConfig, joined
from gptj.attention import causal_attention, document_ends
from gptj.config import ModelConfig
from gptj.cross_entropy import TokenLosses, ZLoss
from gptj.errors import UserError
from gptj.model import Attend, Params, Weight, losses, weights
from gptj.remat import Remat
from gptj.sharding import reshard
from gptj.train.optimizer import (
    ORIGINAL,
    OptimizerConfig,
    current_lr,
    global_norm,
    make_optimizer,
)
from gptj.train.spikes import is_calm, remember
from gptj.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """How a step computes, beside what it learns."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the layers compute in. Weights, moments and the loss are float32 either way. With
    gptj-2021, what the weights are rounded to; its layers compute in float32."""
    remat: Remat = "none"
    """What the backward pass recomputes to save memory: `none`, all but matrix products (`dots`),
    or whole layers (`block`), whose inputs `offload` keeps in the host's memory meanwhile."""
    isolate: bool = False
    """Documents that stand in one row do not see one another."""
    end_of_text: tyro.conf.Suppress[int] = 50256
    """The token between them, GPT-2's; `gptj train` takes that of the data's tokenizer."""
    examples: tyro.conf.Suppress[bool] = False
    """Rows hold whole examples, which never see one another, and what is only read of them comes
    as its complement (`gptj.data.store.ids_of`). `gptj train` knows by the data."""
    z_loss: float = 1e-4
    """Coefficient of the squared log-normaliser added to the loss, which keeps long runs steady."""
    lora: LoRAConfig = NO_LORA
    spike_sigma: float | None = None
    """An update is skipped where the loss or the gradient's norm is so many standard deviations
    above the mean of the last 128 that were not; 0 skips only what is not finite. Default: 6, and
    0 with gptj-2021."""

    def __post_init__(self) -> None:
        for name in ("z_loss", "spike_sigma"):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise UserError(f"{name}={value} must not be below 0")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Means:
    """What a step's microbatches measured, averaged over them; float32 scalars."""

    loss: Float[Array, ""]
    """Mean cross-entropy over the step's tokens in nats, without the z-loss."""
    last_loss: Float[Array, ""]
    """The same over the last token of every row, which has the most to go by."""
    z_loss: Float[Array, ""]
    """What the z-loss adds to the loss."""
    grad_norm_micro: Float[Array, ""]
    """Global norm of a microbatch's gradient."""
    grad_square_micro: Float[Array, ""]
    """The square of that norm, from which the noise scale follows."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics(Means):
    """What one step measured."""

    grad_norm: Float[Array, ""]
    """Global norm of the mean gradient before clipping."""
    lr: Float[Array, ""]
    """The learning rate of this update."""
    streak: Int[Array, ""]
    """0 where the update was made; of a spike, which makes none, how many in a row it is."""
    row_losses: Float[Array, "accumulate batch"]
    """Each row's own loss."""


@functools.partial(
    jax.jit, static_argnames=("model", "optimizer", "config"), donate_argnames="state"
)
def train_step(
    state: TrainState,
    tokens: Int[Array, "accumulate batch length+1"],
    base: Params[Array] | None = None,
    *,
    model: ModelConfig,
    optimizer: OptimizerConfig,
    config: StepConfig,
) -> tuple[TrainState, StepMetrics]:
    """One update from the mean gradient over `accumulate` microbatches. `state` is donated.

    A spike leaves the weights and the optimizer as they were. It counts as a step all the same,
    so that the next one reads other rows.

    Args:
      base: the weights beside which adapters are trained, if they are.
    """
    draw = jax.random.fold_in(jax.random.key(0), state.step)
    means, gradient, row_losses = mean_gradient(
        state.params, tokens, model, optimizer, config, base, draw
    )
    norm = global_norm(gradient, optimizer, model)
    calm = is_calm(state.recent, means.loss, norm, _sigma(optimizer, config))

    def update() -> tuple[Params[Array], optax.OptState]:
        optax_update = make_optimizer(optimizer, model, config.lora).update
        updates, opt_state = optax_update(gradient, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state

    # A branch, not a selection: that would read and write the whole state once more.
    params, opt_state = jax.lax.cond(calm, update, lambda: (state.params, state.opt_state))
    recent = remember(state.recent, means.loss, norm, calm)
    metrics = StepMetrics(
        **vars(means),
        grad_norm=norm,
        lr=current_lr(optimizer, state.opt_state),
        streak=recent.streak,
        row_losses=row_losses,
    )
    return TrainState(state.step + 1, params, opt_state, recent), metrics


def _sigma(optimizer: OptimizerConfig, config: StepConfig) -> float:
    if config.spike_sigma is not None:
        return config.spike_sigma
    return 0.0 if optimizer.kind == ORIGINAL else 6.0


def mean_gradient(
    params: Params[Array] | Adapters[Array],
    tokens: Int[Array, "accumulate batch length+1"],
    model: ModelConfig,
    optimizer: OptimizerConfig,
    config: StepConfig,
    base: Params[Array] | None = None,
    draw: Key[Array, ""] | None = None,
) -> tuple[Means, Params[Array], Float[Array, "accumulate batch"]]:
    """What the microbatches measure, the loss's mean gradient, and each row's loss.

    Gradients are summed in float32.

    Args:
      base: the weights beside which `params` are adapters; of them is the gradient.
      draw: what their dropout is drawn by.
    """
    share = 1 / tokens.shape[0]
    objective = functools.partial(
        _original_loss if optimizer.kind == ORIGINAL else _loss, model=model, config=config
    )
    tokens, counts = _learnt(tokens) if config.examples else (tokens, None)

    # A matrix's gradient is in what the matrix was cast to; as that, it is kept in half the memory.
    ready: Any = params
    if isinstance(params, Params) and optimizer.kind != ORIGINAL:
        ready = _cast(params, model, config)

    def of(params: Any, part: Microbatch) -> tuple[Float[Array, ""], TokenLosses]:
        if base is not None:
            key = None if draw is None else jax.random.fold_in(draw, part.number)
            params = joined(base, params, model, config.lora, key)
        return objective(params, part.rows, part.counts)

    def microbatch(part: Microbatch) -> tuple[Any, Array]:
        (_, parts), gradient = jax.value_and_grad(of, has_aux=True)(ready, part)
        gradient = jax.tree.map(lambda x: x.astype(jnp.float32), gradient)
        norm = global_norm(gradient, optimizer, model)
        means = Means(*_means(parts, part.counts), norm, norm**2)
        shares = jax.tree.map(lambda x: x * share, (means, gradient))
        return shares, reshard(_row_losses(parts.nll, part.counts), None)

    def accumulate(total: Any, part: Microbatch) -> tuple[Any, Array]:
        shares, row_losses = microbatch(part)
        return jax.tree.map(jnp.add, total, shares), row_losses

    whole = Microbatch(tokens, counts, jnp.arange(tokens.shape[0], dtype=jnp.int32))
    if tokens.shape[0] == 1:
        total, row_losses = microbatch(jax.tree.map(lambda x: x[0], whole))
        return *total, row_losses[None]
    zero = Means(*[jnp.zeros(())] * 5), jax.tree.map(jnp.zeros_like, params)
    total, row_losses = jax.lax.scan(accumulate, zero, whole)
    return *total, row_losses


class Microbatch(NamedTuple):
    """Rows that are computed at a time, or all of them with one more dim."""

    rows: Int[Array, "batch length+1"]
    counts: Float[Array, "batch length"] | None
    """What each target counts in the mean over it, 0 where it is only read; alike without."""
    number: Int[Array, ""]


def _learnt(
    tokens: Int[Array, "accumulate batch length+1"],
) -> tuple[Int[Array, "accumulate batch length+1"], Float[Array, "accumulate batch length"]]:
    """The ids, and what each target counts: alike all that are learnt, of whichever microbatch."""
    learnt = (tokens[..., 1:] >= 0).astype(jnp.float32)
    counts = learnt * (tokens.shape[0] / jnp.sum(learnt))
    return jnp.where(tokens < 0, ~tokens, tokens), counts


def _means(
    parts: TokenLosses, counts: Float[Array, "batch length"] | None
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Loss, last tokens' loss and z-loss of a microbatch."""
    nll, z_loss = parts
    if counts is None:
        return jnp.mean(nll), jnp.mean(nll[:, -1]), jnp.mean(z_loss)
    last = jnp.cumsum(counts[:, ::-1] > 0, axis=1)[:, ::-1] == 1  # and what is read after it
    last_nll = jnp.sum(jnp.where(last & (counts > 0), nll, 0), axis=1)
    return jnp.sum(counts * nll), jnp.mean(last_nll), jnp.sum(counts * z_loss)


def _row_losses(
    nll: Float[Array, "batch length"], counts: Float[Array, "batch length"] | None
) -> Float[Array, " batch"]:
    if counts is None:
        return jnp.mean(nll, axis=-1)
    return jnp.sum(counts * nll, axis=-1) / jnp.sum(counts, axis=-1)


def attend_in(rows: Int[Array, "batch length+1"], config: StepConfig) -> Attend:
    """How the inputs in some rows see one another."""
    if not (config.isolate or config.examples):
        return causal_attention
    ends = document_ends(rows[:, :-1], config.end_of_text, closes=config.examples)
    return functools.partial(causal_attention, ends=ends)


def _cast(params: Params[Array], model: ModelConfig, config: StepConfig) -> Params[Array]:
    """The matrices in what the layers compute in, once for all microbatches."""

    def leaf(weight: Weight, x: Array) -> Array:
        return x.astype(config.dtype) if weight.is_matrix else x

    return jax.tree.map(leaf, weights(model), params)


def _loss(
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
        rows,
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
        rows,
        dataclasses.replace(model, vocab_size=model.padded_vocab_size),
        weights=counts,
        remat=config.remat,
        z_loss=ZLoss(config.z_loss, shifted=True),
        attend=attend_in(rows, config),
    )
