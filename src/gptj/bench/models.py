"""The model that is measured: of a named shape with random weights, or one that is there."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from gptj.api import load
from gptj.config import PRESETS, ModelConfig, preset
from gptj.convert.load import quantised
from gptj.convert.open import open_source
from gptj.model import Params, draw, weights
from gptj.quantised import Quantisation


def shape_of(model: str) -> ModelConfig:
    """The shape of a preset, of a JSON file, or of a model of any kind.

    Raises:
      UserError: there is no such model.
    """
    return _shape(model) or open_source(model).config


def stored_as(model: str, stored: str) -> tuple[Params[jax.Array], ModelConfig]:
    """The weights, with matrices of a type; beside few bits, bfloat16 computes.

    Random ones never lie in memory all at once in float32, unless that is what is asked for.

    Raises:
      UserError: there is no such model, or it cannot be stored so.
    """
    dtype = "float32" if stored == "float32" else "bfloat16"
    bits: Quantisation | None = stored if stored in ("int8", "int4") else None  # type: ignore[assignment]
    return loaded(model, dtype, bits)


def loaded(
    model: str, dtype: str, quantize: Quantisation | None
) -> tuple[Params[jax.Array], ModelConfig]:
    """The same, said as `gptj serve` says it."""
    config = _shape(model)
    if config is None:
        found = load(model, dtype=jnp.dtype(dtype), quantize=quantize)
        return found.params, found.config
    keys = iter(jax.random.split(jax.random.key(0), 64))
    make = jax.jit(lambda key, weight: draw(key, weight).astype(dtype), static_argnums=1)
    params = jax.tree.map(lambda weight: make(next(keys), weight), weights(config))
    return (quantised(params, config, dtype, quantize) if quantize else params), config


def _shape(model: str) -> ModelConfig | None:
    """The shape that is named, if it is no model that is there."""
    if Path(model).suffix == ".json":
        return ModelConfig.load(Path(model))
    return preset(model) if model in PRESETS and not Path(model).exists() else None
