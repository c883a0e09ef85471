"""What `gptj plan` is asked."""

from __future__ import annotations

from pathlib import Path

from gptj.config import PRESETS, ModelConfig
from gptj.errors import UserError
from gptj.plan.job import Mesh
from gptj.sharding import MESH_AXES

TOKENS = 1 << 20
"""A step of a preset: what GPT-J was trained on."""


def mesh_from(words: str) -> Mesh:
    """`data=32,tensor=8` as the sizes of all axes.

    Raises:
      UserError: it says anything else.
    """
    sizes = dict.fromkeys(MESH_AXES, 1)
    for word in words.split(","):
        axis, equals, size = word.partition("=")
        if axis.strip() not in sizes or not equals or not size.strip().isdecimal():
            raise UserError(
                f"mesh {words!r} is not like data=32,tensor=8, of the axes {', '.join(MESH_AXES)}"
            )
        sizes[axis.strip()] = int(size)
    data, fsdp, tensor = sizes.values()
    return data, fsdp, tensor


def model_named(name: str) -> ModelConfig:
    """The model of a preset or of a JSON file.

    Raises:
      UserError: there is neither.
    """
    if name in PRESETS:
        return PRESETS[name]
    if not Path(name).is_file():
        raise UserError(f"model {name!r} is neither a preset ({', '.join(PRESETS)}) nor a file")
    return ModelConfig.load(Path(name))
