"""Our weights by name, a layer's own tensors apart; and the check of anyone's names against a list.

A name is `embedding`, or `blocks.3.query`. Foreign names are data: a `Params` with a record of
the foreign name at every leaf, expanded here over the layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

from gptj.config import ModelConfig
from gptj.convert.tensor import BFLOAT16
from gptj.errors import UserError
from gptj.model import Params, Weight, weights

Record = TypeVar("Record")


def by_name(tree: Params[Record], layers: int) -> dict[str, tuple[Record, int]]:
    """Each tensor's name -> its record in `tree` and its layer (0 outside the layers)."""
    found: dict[str, tuple[Record, int]] = {}
    for name, value in _fields(tree):
        if name != "blocks":
            found |= {} if value is None else {name: (value, 0)}
            continue
        for layer in range(layers):
            for part, record in _fields(value):
                found[f"blocks.{layer}.{part}"] = record, layer
    return found


def tensors(config: ModelConfig) -> dict[str, Weight]:
    """What each tensor of a model of this shape is, without the leading dim of the layers."""

    def own(weight: Weight) -> Weight:
        stacked = weight.axes[0] == "layers"
        return Weight(weight.shape[stacked:], weight.axes[stacked:], weight.init)

    table = by_name(weights(config), config.layers)
    return {name: own(weight) for name, (weight, _) in table.items()}


def matrix_shape(weight: Weight) -> tuple[int, ...]:
    """The shape where heads and the dims of a head are one dim, as everyone else stores them."""
    if "heads" not in weight.axes:
        return weight.shape
    at = weight.axes.index("heads")
    merged = math.prod(weight.shape[at : at + 2])
    return (*weight.shape[:at], merged, *weight.shape[at + 2 :])


def check_names(where: str, found: Iterable[str], expected: Iterable[str]) -> None:
    """Refuse a set of names that is not the expected one.

    Raises:
      UserError: naming what is unknown and what is missing, and what was expected.
    """
    found, expected = set(found), set(expected)
    unknown, missing = sorted(found - expected), sorted(expected - found)
    parts = [
        f"{word} {_few(names)}"
        for word, names in (("unknown", unknown), ("missing", missing))
        if names
    ]
    if parts:
        raise UserError(
            f"{where} does not hold the weights of a GPT-J of this shape: {'; '.join(parts)}; "
            f"expected are {_few(sorted(expected))}. Check that the config is this model's"
        )


def check_shape(where: str, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape than the config says."""
    if found != expected:
        raise UserError(
            f"{where}: {name} has shape {found}, the config says {expected}: they are not of one "
            "model, or the config is wrong"
        )


def check_float(where: str, name: str, dtype: np.dtype[Any]) -> None:
    """Refuse a weight, or a moment of one, that is of another type than these have."""
    if dtype not in (np.float32, np.float16, BFLOAT16):
        raise UserError(
            f"{where}: {name} is of type {dtype}, not float32, float16 or bfloat16: it is no weight"
        )


def _few(names: list[str]) -> str:
    most = 6
    names = [" ".join(name.split())[:100] for name in names]  # as a file has them: be one line
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _fields(record: Any) -> list[tuple[str, Any]]:
    return [(field.name, getattr(record, field.name)) for field in dataclasses.fields(record)]
