"""One training step: the jitted program that `gptj train` runs, `plan` compiles, `bench` times."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from gptj.adapters import Adapters, joined
from gptj.config import ModelConfig
from gptj.model import Params, Weight, weights
from gptj.sharding import reshard
from gptj.train.objective import Measured, Microbatch, StepConfig, objective, parts_of
from gptj.train.optimizer import (
    ORIGINAL,
    OptimizerConfig,
    current_lr,
    global_norm,
    make_optimizer,
)
from gptj.train.spikes import is_calm, remember
from gptj.train.state import TrainState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Means:
    """What a step's microbatches measured, averaged over them; float32 scalars."""

    loss: Float[Array, ""]
    """Mean cross-entropy over the step's tokens in nats, without the z-loss; of pairs the loss of
    `gptj.train.preferences`."""
    last_loss: Float[Array, ""] | None
    """The same over the last token of every row, which has the most to go by; none of pairs."""
    z_loss: Float[Array, ""]
    """What the z-loss adds to the loss."""
    accuracy: Float[Array, ""] | None
    """Of pairs, how many became likelier the right way round."""
    margin: Float[Array, ""] | None
    """Of pairs, `dpo_beta` times by how much, in nats."""
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
    minimised = objective(model, config, optimizer.kind == ORIGINAL, base)

    # A matrix's gradient is in what the matrix was cast to; as that, it is kept in half the memory.
    ready: Any = params
    if isinstance(params, Params) and optimizer.kind != ORIGINAL:
        ready = _cast(params, model, config)

    def of(params: Any, part: Microbatch) -> tuple[Float[Array, ""], Measured]:
        if base is not None:
            key = None if draw is None else jax.random.fold_in(draw, part.number)
            params = joined(base, params, model, config.lora, key)
        return minimised(params, part)

    def microbatch(part: Microbatch) -> tuple[Any, Array]:
        (_, found), gradient = jax.value_and_grad(of, has_aux=True)(ready, part)
        gradient = jax.tree.map(lambda x: x.astype(jnp.float32), gradient)
        norm = global_norm(gradient, optimizer, model)
        means = Means(
            found.loss, found.last_loss, found.z_loss, found.accuracy, found.margin, norm, norm**2
        )
        shares = jax.tree.map(lambda x: x * share, (means, gradient))
        return shares, reshard(found.row_losses, None)

    def accumulate(total: Any, part: Microbatch) -> tuple[Any, Array]:
        shares, row_losses = microbatch(part)
        return jax.tree.map(jnp.add, total, shares), row_losses

    whole = parts_of(tokens, config)
    if tokens.shape[0] == 1:
        total, row_losses = microbatch(jax.tree.map(lambda x: x[0], whole))
        return *total, row_losses[None]
    zero = jax.tree.map(jnp.zeros_like, params)
    total, row_losses = jax.lax.scan(accumulate, (_no_means(config), zero), whole)
    return *total, row_losses


def _no_means(config: StepConfig) -> Means:
    """Before the first microbatch."""
    zero = jnp.zeros(())
    of_pairs = zero if config.pairs else None
    return Means(zero, None if config.pairs else zero, zero, of_pairs, of_pairs, zero, zero)


def _cast(params: Params[Array], model: ModelConfig, config: StepConfig) -> Params[Array]:
    """The matrices in what the layers compute in, once for all microbatches."""

    def leaf(weight: Weight, x: Array) -> Array:
        return x.astype(config.dtype) if weight.is_matrix else x

    return jax.tree.map(leaf, weights(model), params)
