"""The optimizers and their one schedule, out of Optax's parts."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro
from jaxtyping import Array, Float

from gptj.adapters import NO_LORA, LoRAConfig, trained
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.model import Params, Weight, weights
from gptj.sharding import LOGICAL_TO_MESH

Kind = Literal["adamw", "adafactor", "lion", "muon", "gptj-2021"]

ORIGINAL = "gptj-2021"
"""Mesh Transformer JAX's training step; docs/differences.md says what that changes."""

_BETAS: dict[str, tuple[float, float]] = {
    "adamw": (0.9, 0.95),
    "lion": (0.9, 0.99),
    "muon": (0.9, 0.95),
    ORIGINAL: (0.9, 0.999),
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How a gradient becomes an update."""

    kind: Annotated[Kind, tyro.conf.arg(name="optimizer")] = "adamw"
    """`adamw`; `adafactor`, whose state is a few numbers a row and column; `lion`, half of Adam's
    state, for a learning rate 3 to 10 times lower; `muon` for the layers' matrices and Adam, with
    Nesterov's momentum, for the rest; `gptj-2021`, the original trainer's step with its quirks."""
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
    b1: float | None = None
    """Decay rate of the running mean of gradients. Default: 0.9."""
    b2: float | None = None
    """Decay rate of the running mean of squared gradients; Lion's of its gradients. Default: 0.95;
    0.99 for lion, 0.999 for gptj-2021."""
    eps: float = 1e-8
    """Added to Adam's denominator."""
    clip: float = 1.0
    """Gradients of a larger global norm are scaled down to this norm."""
    grows_from: tyro.conf.Suppress[float | None] = None
    """The rate grows from this to `lr`, by the same factor at every step, instead."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """What the running means are kept in between steps; bfloat16 halves the optimizer's memory."""
    original_shards: int | None = None
    """With gptj-2021, the shards that the original trained on. It kept a copy of some biases on
    each and used their sum, which so moves that many times faster, and counts as often in the
    gradient's norm. Default: 8, GPT-J's."""

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
            if (value := getattr(self, name)) is not None and not 0 <= value < 1:
                raise UserError(f"{name}={value} must be at least 0 and below 1")
        if not self.weight_decay >= 0:
            raise UserError(f"weight_decay={self.weight_decay} must be at least 0")
        self._check_kind()

    def _check_kind(self) -> None:
        """Refuse what the chosen optimizer would not look at."""
        if self.kind not in _BETAS and (self.b1 is not None or self.b2 is not None):
            raise UserError(f"optimizer={self.kind} has no b1 and b2: leave them out")
        if self.kind in ("adafactor", "lion") and self.eps != OptimizerConfig.eps:
            raise UserError(f"optimizer={self.kind} has no eps={self.eps}: leave it out")
        if self.moments == "bfloat16" and self.kind in ("adafactor", ORIGINAL):
            raise UserError(f"optimizer={self.kind} has no moments=bfloat16: leave it out")
        if self.moments == "bfloat16" and self.kind == "adamw" and (self.b2 or 0) > 0.99:
            raise UserError(
                f"moments=bfloat16 cannot follow b2={self.b2}: bfloat16 resolves 1 in 256, and "
                "such a mean moves less than that in a step. Lower b2 to 0.99 or less"
            )
        if self.original_shards is not None and self.kind != ORIGINAL:
            raise UserError(
                f"original_shards={self.original_shards} is for optimizer={ORIGINAL}: add "
                f"--optimizer {ORIGINAL}, or leave it out"
            )
        if self.original_shards is not None and self.original_shards < 1:
            raise UserError(f"original_shards={self.original_shards} must be at least 1")

    def for_run(self, steps: int) -> OptimizerConfig:
        """The same with every default filled in for a run of `steps` steps."""
        if self.warmup_steps >= steps:
            raise UserError(
                f"warmup_steps={self.warmup_steps} leaves nothing of the run's {steps} steps: "
                "lower the warm-up or train longer"
            )
        filled: dict[str, Any] = {"anneal_steps": self.anneal_steps or steps - self.warmup_steps}
        if self.kind in _BETAS:
            b1, b2 = _BETAS[self.kind]
            filled["b1"] = b1 if self.b1 is None else self.b1
            filled["b2"] = b2 if self.b2 is None else self.b2
        if self.kind == ORIGINAL:
            filled["original_shards"] = self.original_shards or 8
        return dataclasses.replace(self, **filled)


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Update count -> learning rate: linear to `lr`, a half cosine to `end_lr`, then constant."""
    assert config.anneal_steps is not None, "call for_run first"
    if config.grows_from is not None:
        factor = config.lr / config.grows_from
        return optax.exponential_decay(config.grows_from, config.anneal_steps - 1, factor)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.lr,
        peak_value=config.lr,
        warmup_steps=config.warmup_steps,
        decay_steps=config.warmup_steps + config.anneal_steps,
        end_value=config.end_lr,
    )


def make_optimizer(
    config: OptimizerConfig, model: ModelConfig, lora: LoRAConfig = NO_LORA
) -> optax.GradientTransformation:
    """Clip by global norm, scale, decay the matrices, step down the schedule."""
    table = trained(model, lora)
    matrices = jax.tree.map(lambda weight: weight.is_matrix, table)
    return optax.chain(
        _clip(config, model),
        _scale(config, table),
        optax.add_decayed_weights(config.weight_decay, mask=matrices),
        optax.scale_by_learning_rate(schedule(config)),
        *([_copies_move(config, model)] if config.kind == ORIGINAL else []),
    )


def _scale(config: OptimizerConfig, table: Any) -> optax.GradientTransformation:
    """What tells the optimizers apart: a gradient to a direction of about one a weight."""
    b1, b2, dtype = config.b1, config.b2, config.moments
    if config.kind == "adafactor":
        return _auto(optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)))
    assert b1 is not None and b2 is not None, "call for_run first"
    if config.kind == "lion":
        return optax.scale_by_lion(b1, b2, mu_dtype=jnp.dtype(dtype))
    if config.kind == "muon":
        return _auto(_muon(b1, b2, config.eps, dtype, table))
    adam = optax.scale_by_adam(b1, b2, config.eps)
    return adam if dtype == "float32" else _stored(adam, jnp.dtype(dtype))


def _muon(b1: float, b2: float, eps: float, dtype: str, table: Any) -> optax.GradientTransformation:
    """Muon for the layers' matrices, its updates as large as Adam's, which has the rest.

    From "Muon is Scalable for LLM Training" (arXiv:2502.16982), section 2.2. As Optax has them,
    both look ahead: Adam's running mean of gradients is Nesterov's ("NAdam", Dozat 2016).
    """
    layers = optax.contrib.muon(
        1.0,
        muon_weight_dimension_numbers=_dimension_numbers(table),
        consistent_rms=0.2,
        adam_b1=b1,
        adam_b2=b2,
        eps=eps,
        mu_dtype=jnp.dtype(dtype),
    )
    return optax.chain(layers, optax.scale(-1.0))  # its own learning rate turned the sign


def _dimension_numbers(table: Any) -> Any:
    """Which dims of a layer's matrix are its rows and columns; `None` is left to Adam."""

    def numbers(weight: Weight) -> optax.contrib.MuonDimensionNumbers | None:
        if weight.axes[0] != "layers" or not weight.is_matrix:
            return None
        dims = tuple(range(1, len(weight.shape)))
        return optax.contrib.MuonDimensionNumbers(dims[: weight.inner], dims[weight.inner :])

    return jax.tree.map(numbers, table)


def _auto(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` with the layouts of its insides left to the compiler.

    Optax's products and reshapes do not say how their results are laid out, as explicit shardings
    need; what goes in and comes out keeps its own.
    """

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if jax.sharding.get_abstract_mesh().empty:
            return inner.update(updates, state, params)
        layout = jax.tree.map(lambda x: jax.typeof(x).sharding, (updates, state))
        return jax.sharding.auto_axes(inner.update, out_sharding=layout)(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def _stored(inner: optax.GradientTransformation, dtype: Any) -> optax.GradientTransformation:
    """`inner` computing in float32 on a state that is kept in `dtype`."""

    def cast(state: Any, to: Any) -> Any:
        def leaf(x: Array) -> Array:
            return x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x

        return jax.tree.map(leaf, state)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = inner.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(inner.init(params), dtype), update)


def copies(config: OptimizerConfig, model: ModelConfig) -> Params[int]:
    """How often each weight counts: once, but for the biases that the original kept per shard."""

    def count(path: Any, weight: Weight) -> int:
        split = any(LOGICAL_TO_MESH.get(axis or "") == "tensor" for axis in weight.axes)
        summed = path[-1].name.endswith("bias") and not split
        return (config.original_shards or 1) if summed else 1

    return jax.tree_util.tree_map_with_path(count, weights(model))


def global_norm(
    gradient: Params[Array], config: OptimizerConfig, model: ModelConfig
) -> Float[Array, ""]:
    """The root of the sum of all squares."""
    if config.kind != ORIGINAL:
        return optax.tree.norm(gradient)
    often = jax.tree.map(lambda g, n: g * n**0.5, gradient, copies(config, model))
    return optax.tree.norm(often)


def _clip(config: OptimizerConfig, model: ModelConfig) -> optax.GradientTransformation:
    if config.kind != ORIGINAL:
        return optax.clip_by_global_norm(config.clip)

    def clip(gradient: Params[Array], _: Any) -> Params[Array]:
        share = jnp.minimum(1.0, config.clip / global_norm(gradient, config, model))
        return jax.tree.map(lambda g: g * share, gradient)

    return optax.stateless(clip)


def _copies_move(config: OptimizerConfig, model: ModelConfig) -> optax.GradientTransformation:
    """Every copy of a summed bias makes the whole step."""
    often = copies(config, model)
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, n: u * n, updates, often))


def current_lr(config: OptimizerConfig, opt_state: optax.OptState) -> Float[Array, ""]:
    """The learning rate of the next update; the schedule has a counter of its own."""
    (counter,) = (part for part in opt_state if isinstance(part, optax.ScaleByScheduleState))
    return jnp.asarray(schedule(config)(counter.count))
