"""Everything a training run carries from one step to the next, in one tree."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, Key

from gptj import adapters
from gptj.adapters import NO_LORA, Adapters, LoRAConfig, trained
from gptj.config import ModelConfig
from gptj.model import Params, abstract_table, init
from gptj.sharding import on_mesh, spec
from gptj.train.optimizer import OptimizerConfig, make_optimizer
from gptj.train.spikes import Recent, no_recent


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The step counts updates done; it is also the place in the data (`gptj.data.batches`)."""

    step: Int[Array, ""]
    params: Params[Array] | Adapters[Array]
    """What is trained: the weights, or adapters beside weights that are kept elsewhere."""
    opt_state: optax.OptState
    recent: Recent


def new_state(
    key: Key[Array, ""],
    model: ModelConfig,
    optimizer: OptimizerConfig,
    lora: LoRAConfig = NO_LORA,
) -> TrainState:
    """The state before the first step: random weights or adapters, empty moments."""
    made = init(key, model) if lora.rank is None else adapters.init(key, model, lora)
    return state_from(made, model, optimizer, lora)


@functools.partial(jax.jit, static_argnums=(1, 2, 3), donate_argnums=0)
def state_from(
    params: Params[Array] | Adapters[Array],
    model: ModelConfig,
    optimizer: OptimizerConfig,
    lora: LoRAConfig = NO_LORA,
) -> TrainState:
    """The state before the first step of training `params` (donated)."""
    opt_state = make_optimizer(optimizer, model, lora).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, no_recent())


def abstract_state(
    model: ModelConfig, optimizer: OptimizerConfig, lora: LoRAConfig = NO_LORA
) -> TrainState:
    """The state's shapes, dtypes and shardings on the mesh that is set, without any memory."""
    like = abstract_table(trained(model, lora))
    shapes = jax.eval_shape(lambda params: state_from(params, model, optimizer, lora), like)
    if spec() is None:
        return shapes

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        layout = leaf.sharding.spec if leaf.sharding else PartitionSpec()  # scalars: everywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_mesh(layout))

    return jax.tree.map(placed, shapes)
