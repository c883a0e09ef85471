"""The keys and values of the tokens read so far."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gptj.config import ModelConfig
from gptj.sharding import check_batch, check_mesh, spec

AXES = ("layers", "batch", None, "heads", None)
"""Logical axes of both arrays: rows over data and fsdp, heads over tensor."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What attention remembers of each row, by position; a program that takes it consumes it."""

    keys: Float[Array, "layers batch context heads d_head"]
    """Rotated to their positions."""
    values: Float[Array, "layers batch context heads d_head"]


def new_cache(config: ModelConfig, batch: int, dtype: DTypeLike, context: int) -> Cache:
    """An empty cache for `batch` rows of `context` positions, on the mesh that is set.

    Its bytes are `2 * layers * batch * context * d_model` times those of `dtype`, which is also
    what the programs compute in.

    Raises:
      UserError: the mesh does not divide the heads, or the rows.
    """
    check_mesh(config)
    check_batch(batch)
    shape = (config.layers, batch, context, config.heads, config.d_head)
    sharding = spec(*AXES)
    return Cache(*(jnp.zeros(shape, dtype, out_sharding=sharding) for _ in range(2)))
