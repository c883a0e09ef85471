"""What every kind of checkpoint becomes: a config, and our names with tensors still to be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Array

from gptj.config import ModelConfig
from gptj.convert import names
from gptj.convert.tensor import Tensor
from gptj.model import Params, Weight
from gptj.tokenizer import Tokenizer

MU, NU = "mu.", "nu."
COUNT, SCHEDULE_COUNT = "count", "schedule_count"


@dataclass(frozen=True)
class Source:
    """A model on disk (or elsewhere) that can be read a tensor at a time."""

    kind: str
    place: str
    config: ModelConfig
    weights: dict[str, Tensor]
    """Every tensor of the model by our name (`blocks.3.query`), in our shape."""
    tokenizer: Callable[[], Tokenizer | None] = field(default=lambda: None)
    step: int | None = None
    """Updates that made these weights, where the files tell."""
    optimizer: dict[str, Tensor] | None = None
    """Adam's moments, `mu.NAME` and `nu.NAME`, its `count` and the schedule's `schedule_count`."""
    restore: Callable[[np.dtype[Any]], Params[Array]] | None = None
    """All weights onto the mesh at once, where that is how this kind is read."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the weights are stored in: the embedding's type."""
        return self.weights["embedding"].dtype


def from_params(
    config: ModelConfig, params: Params[Any], tokenizer: Tokenizer | None, place: str = "memory"
) -> Source:
    """A model in memory as a source, each tensor fetched from the devices when it is read."""

    def fetched(name: str, weight: Weight, leaf: Any, layer: int) -> Tensor:
        stacked = name.startswith("blocks.")
        read = lambda: np.asarray(leaf[layer] if stacked else leaf)  # noqa: E731
        return Tensor(weight.shape, np.dtype(leaf.dtype), read)

    leaves = names.by_name(params, config.layers)
    table = names.tensors(config)
    found = {name: fetched(name, table[name], *leaves[name]) for name in table}
    return Source("gptj", place, config, found, lambda: tokenizer)
