"""A model with low-rank adapters, as one model: what they add is added as each tensor is read."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from gptj.adapters import FIELDS, LoRAConfig, table
from gptj.config import ModelConfig
from gptj.convert import names
from gptj.convert.source import Source
from gptj.convert.tensor import Tensor
from gptj.errors import UserError
from gptj.model import weights
from gptj.quantised import dequantised, quantise

SAMPLED = 32
"""Rows and columns of a matrix that its part in a model's mark is taken from."""

MARKED = "3:"
"""What a mark begins with: those of before told other models apart."""

Halves = tuple[Float32[np.ndarray, "inner rank"], Float32[np.ndarray, "rank outer"]]
"""The two matrices of an adapter of one layer."""


@dataclass(frozen=True)
class Adapter:
    """Adapters on disk, not read yet."""

    place: str
    lora: LoRAConfig
    read: Callable[[str, int], Halves]
    """The adapter of a field of `Block` in a layer."""
    base: str | None
    """The model that they belong to, as they name it."""
    mark: str | None = None
    """`mark_of` that model, where they tell."""


def mark_of(source: Source) -> str:
    """What tells one model from others at a glance: a hash of some of its weights.

    All vectors, which are few numbers, and of each matrix of the first layer, the last and outside
    the layers some rows and columns: adapters that were merged change nearly all of its numbers.
    They are rounded to bfloat16 first, so that a model's copy in it is the same model.
    """
    digest = hashlib.sha256()
    sampled = re.compile(rf"blocks\.(0|{source.config.layers - 1})\.|(?!blocks\.)")
    for name, weight in sorted(names.tensors(source.config).items()):
        tensor = source.weights[name]
        if len(tensor.shape) == 1:
            found = tensor.read()
        elif sampled.match(name):
            rows, columns = names.matrix_shape(weight)
            found = tensor.sample((rows, columns), SAMPLED)
        else:
            continue
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(found, jnp.bfloat16).tobytes())
    return MARKED + digest.hexdigest()


def check_base(adapter: Adapter, base: Source) -> None:
    """See that adapters belong to a model.

    Raises:
      UserError: they do not, or cannot.
    """
    adapter.lora.check(base.config)
    if adapter.mark is not None and adapter.mark != mark_of(base):
        raise UserError(
            f"the adapters of {adapter.place} belong to another model than {base.place}: name "
            f"theirs, which was {adapter.base}"
        )


def with_adapter(base: Source, adapter: Adapter) -> Source:
    """The model that a base and its adapters are together.

    A base that was kept in few bits beside its adapters is rounded in the same way here.

    Raises:
      UserError: they do not belong together.
    """
    check_base(adapter, base)
    config, changed = base.config, dict(base.weights)
    inner_dims = inner_dims_of(config)
    for target in adapter.lora.targets:
        field = FIELDS[target]
        for layer in range(config.layers):
            name = f"blocks.{layer}.{field}"
            reader = _Sum(base.weights[name], adapter, field, layer, inner_dims[field])
            changed[name] = dataclasses.replace(base.weights[name], read=reader, matrix=None)
    return dataclasses.replace(
        base,
        kind=f"{base.kind} with adapters",
        place=adapter.place,
        weights=changed,
        optimizer=None,
        step=None,
        restore=None,
    )


@dataclass(frozen=True)
class _Sum:
    """Reads a matrix and what its adapter adds."""

    matrix: Tensor
    adapter: Adapter
    field: str
    layer: int
    inner_dims: int

    def __call__(self) -> np.ndarray:
        array, lora = self.matrix.read(), self.adapter.lora
        down, up = self.adapter.read(self.field, self.layer)
        if lora.quantize:
            few = quantise(jnp.asarray(array), self.inner_dims, lora.quantize)
            array = np.asarray(dequantised(few))
        flat = np.asarray(array, np.float32).reshape(down.shape[0], up.shape[1])
        whole = flat + np.float32(lora.scale) * (down @ up)
        return whole.reshape(self.matrix.shape).astype(self.matrix.dtype)


def inner_dims_of(config: ModelConfig) -> dict[str, int]:
    """How many of the first dims of each matrix that can be adapted a product sums over."""
    blocks = weights(config).blocks
    return {field: getattr(blocks, field).inner for field in FIELDS.values()}


def check_shapes(
    where: str, config: ModelConfig, lora: LoRAConfig, halves: Halves, field: str
) -> None:
    """Refuse an adapter that is not of a model's shape."""
    pair = table(config, lora)[field]
    wanted = pair.down.shape[1:], pair.up.shape[1:]
    if tuple(half.shape for half in halves) != wanted:
        found = " and ".join(str(half.shape) for half in halves)
        raise UserError(
            f"{where}: the adapter of {field} has matrices of {found}, the model's are of "
            f"{wanted[0]} and {wanted[1]}: it is of another model"
        )
