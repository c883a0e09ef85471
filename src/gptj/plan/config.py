"""What `gptj plan` is asked."""

from __future__ import annotations

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
    sizes: dict[str, int] = {}
    for word in words.split(","):
        axis, _, size = (part.strip() for part in word.partition("="))
        if axis not in MESH_AXES or axis in sizes or not size.isdecimal():
            raise UserError(
                f"mesh {words!r} is not like data=32,tensor=8, of the axes {', '.join(MESH_AXES)}, "
                "each once"
            )
        sizes[axis] = int(size)
    data, fsdp, tensor = (sizes.get(axis, 1) for axis in MESH_AXES)
    return data, fsdp, tensor
