"""The optimizer: GPT-J's AdamW and its schedule, out of Optax's parts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.model import weights


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a clipped gradient and a warm-up then cosine schedule."""

    lr: float = 6e-4
    """Peak learning rate, reached at the end of the warm-up."""
    end_lr: float = 6e-5
    """Learning rate at the end of the cosine and from there on."""
    warmup_steps: int = 100
    """Steps of linear warm-up; the first update has learning rate 0 when this is not 0."""
    anneal_steps: int | None = None
    """Steps of cosine decay after the warm-up. Default: up to the last step of the run."""
    weight_decay: float = 0.1
    """Decoupled weight decay, of matrices only (not of biases and norms)."""
    b1: float = 0.9
    """Decay rate of Adam's running mean of gradients."""
    b2: float = 0.95
    """Decay rate of Adam's running mean of squared gradients."""
    eps: float = 1e-8
    """Added to Adam's denominator."""
    clip: float = 1.0
    """Gradients of a larger global norm are scaled down to this norm."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or not 0 <= self.end_lr <= self.lr:
            raise UserError(
                f"lr={self.lr} must be above 0, and end_lr={self.end_lr} between 0 and lr"
            )
        if self.warmup_steps < 0 or (self.anneal_steps is not None and self.anneal_steps < 1):
            raise UserError(
                f"warmup_steps={self.warmup_steps} must be at least 0 and "
                f"anneal_steps={self.anneal_steps} at least 1"
            )
        for name in ("clip", "eps"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 0 and below 1")
        if not self.weight_decay >= 0:
            raise UserError(f"weight_decay={self.weight_decay} must be at least 0")

    def for_run(self, steps: int) -> OptimizerConfig:
        """The same with `anneal_steps` filled in for a run of `steps` steps."""
        if self.warmup_steps >= steps:
            raise UserError(
                f"warmup_steps={self.warmup_steps} leaves nothing of the run's {steps} steps: "
                "lower the warm-up or train longer"
            )
        return dataclasses.replace(
            self, anneal_steps=self.anneal_steps or steps - self.warmup_steps
        )


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Update count -> learning rate: linear to `lr`, a half cosine to `end_lr`, then constant."""
    assert config.anneal_steps is not None, "call for_run first"
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.lr,
        peak_value=config.lr,
        warmup_steps=config.warmup_steps,
        decay_steps=config.warmup_steps + config.anneal_steps,
        end_value=config.end_lr,
    )


def make_optimizer(config: OptimizerConfig, model: ModelConfig) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decay the matrices, step down the schedule."""
    matrices = jax.tree.map(lambda weight: weight.is_matrix, weights(model))
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=matrices),
        optax.scale_by_learning_rate(schedule(config)),
    )


def current_lr(config: OptimizerConfig, opt_state: optax.OptState) -> Float[Array, ""]:
    """The learning rate of the next update; the schedule has a counter of its own."""
    (counter,) = (part for part in opt_state if isinstance(part, optax.ScaleByScheduleState))
    return jnp.asarray(schedule(config)(counter.count))
