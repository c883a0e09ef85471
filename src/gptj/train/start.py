"""The state a run begins with when it begins from a model that is there already."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from gptj.convert.load import load_params, load_tree
from gptj.convert.source import COUNT, MU, NU, SCHEDULE_COUNT, Source
from gptj.errors import UserError
from gptj.model import Params, abstract
from gptj.sharding import place
from gptj.tokenizer import Tokenizer
from gptj.train.objective import StepConfig
from gptj.train.optimizer import ORIGINAL, OptimizerConfig, make_optimizer
from gptj.train.spikes import no_recent
from gptj.train.state import TrainState, state_from

ADAM = ("adamw", ORIGINAL)
"""The optimizers that the original's state is of."""

PROBE = "The naïve café's 3rd  résumé:\n\tx += 42; 你好, привет! <|endoftext|>"
"""A text that two tokenizers will not cut alike by accident."""


def state_of(source: Source, optimizer: OptimizerConfig, *, fresh: bool = False) -> TrainState:
    """The state to train `source` on from: where it stopped, if it has its optimizer's state.

    Without one, or if it is to be `fresh`, the moments are empty and the step is 0.

    Raises:
      UserError: the state is Adam's and `optimizer` is not.
    """
    if source.optimizer is not None and not fresh and optimizer.kind not in ADAM:
        raise UserError(
            f"{source.place} comes with Adam's moments, which optimizer={optimizer.kind} cannot go "
            f"on from: use one of {', '.join(ADAM)}, or leave them behind with --fresh-opt"
        )
    params = load_params(source, jnp.float32)
    if source.optimizer is None or fresh:
        return state_from(params, source.config, optimizer)
    step = place(np.asarray(source.step or 0, np.int32))
    return TrainState(step, params, _moments(source, source.optimizer, optimizer), no_recent())


def _moments(source: Source, saved: dict[str, Any], optimizer: OptimizerConfig) -> optax.OptState:
    """Adam's moments and both counters, in the tree of our optimizer."""

    def tree(prefix: str, like: Params[Any]) -> Params[Array]:
        own = {name: saved[prefix + name] for name in source.weights}
        whole = load_tree(source.config, own, jnp.float32, source.place)
        return jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), whole, like)

    def filled(part: Any) -> Any:
        if isinstance(part, optax.ScaleByAdamState):
            count = place(saved[COUNT].read())
            return optax.ScaleByAdamState(count, tree(MU, part.mu), tree(NU, part.nu))
        return optax.ScaleByScheduleState(place(saved[SCHEDULE_COUNT].read()))

    init = make_optimizer(optimizer, source.config).init
    shapes = jax.eval_shape(init, abstract(source.config))
    return jax.tree.map(
        filled,
        shapes,
        is_leaf=lambda part: isinstance(part, optax.ScaleByAdamState | optax.ScaleByScheduleState),
    )


def base_of(source: Source, compute: StepConfig) -> Params[Array]:
    """The weights beside which a run trains adapters.

    They are in what its layers compute in, or in fewer bits.
    """
    return load_params(source, jnp.dtype(compute.dtype), compute.lora.quantize)


def check_tokenizer(source: Source, data: Tokenizer) -> None:
    """Refuse data whose tokens mean something else to the model.

    Raises:
      UserError: the model's tokenizer cuts text otherwise; says how to prepare the data.
    """
    own = source.tokenizer()
    if own is not None and own.encode(PROBE) != data.encode(PROBE):
        raise UserError(
            f"the data was prepared with another tokenizer than that of {source.place}: prepare it "
            f"again with --tokenizer {source.place}"
        )
