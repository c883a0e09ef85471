"""One training step: the jitted program that `gptj train` runs, `plan` compiles, `bench` times."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.model import Params, Remat, losses
from gptj.train.optimizer import OptimizerConfig, current_lr, make_optimizer
from gptj.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """How a step computes, beside what it learns."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the layers compute in. Weights, moments and the loss are float32 either way."""
    remat: Remat = "none"
    """What the backward pass recomputes to save memory: `none`, all but matrix products (`dots`),
    or whole layers (`block`)."""
    z_loss: float = 0.0
    """Coefficient of the squared log-normaliser added to the loss; 1e-4 steadies long bf16 runs."""

    def __post_init__(self) -> None:
        if self.z_loss < 0:
            raise UserError(f"z_loss={self.z_loss} must not be below 0")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """What one step measured, as float32 scalars."""

    loss: Float[Array, ""]
    """Mean cross-entropy over the step's tokens in nats, without the z-loss."""
    grad_norm: Float[Array, ""]
    """Global norm of the mean gradient before clipping."""
    lr: Float[Array, ""]
    """The learning rate this update used."""


@functools.partial(
    jax.jit, static_argnames=("model", "optimizer", "config"), donate_argnames="state"
)
def train_step(
    state: TrainState,
    tokens: Int[Array, "accumulate batch length+1"],
    *,
    model: ModelConfig,
    optimizer: OptimizerConfig,
    config: StepConfig,
) -> tuple[TrainState, StepMetrics]:
    """One update from the mean gradient over `accumulate` microbatches. `state` is donated."""
    loss, gradient = mean_gradient(state.params, tokens, model, config)
    updates, opt_state = make_optimizer(optimizer, model).update(
        gradient, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    lr = current_lr(optimizer, state.opt_state)
    metrics = StepMetrics(loss, optax.tree.norm(gradient), lr)
    return TrainState(state.step + 1, params, opt_state), metrics


def mean_gradient(
    params: Params[Array],
    tokens: Int[Array, "accumulate batch length+1"],
    model: ModelConfig,
    config: StepConfig,
) -> tuple[Float[Array, ""], Params[Array]]:
    """The mean cross-entropy over all rows and the loss's gradient, summed in float32."""
    share = 1 / tokens.shape[0]

    def microbatch(rows: Int[Array, "batch length+1"]) -> tuple[Array, Params[Array]]:
        def objective(params: Params[Array]) -> tuple[Array, Array]:
            loss, nll = losses(
                params,
                rows,
                model,
                dtype=jnp.dtype(config.dtype),
                remat=config.remat,
                z_loss=config.z_loss,
            )
            return loss * share, jnp.mean(nll) * share

        gradient, nll = jax.grad(objective, has_aux=True)(params)
        return nll, gradient

    def accumulate(
        total: tuple[Array, Params[Array]], rows: Int[Array, "batch length+1"]
    ) -> tuple[tuple[Array, Params[Array]], None]:
        return jax.tree.map(jnp.add, total, microbatch(rows)), None

    if tokens.shape[0] == 1:
        return microbatch(tokens[0])
    zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(accumulate, zero, tokens)[0]
