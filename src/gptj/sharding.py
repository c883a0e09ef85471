"""Where arrays live: the mesh, and one table from the model's axes to the mesh's.

Everything runs in JAX's explicit-sharding mode: an array's type says how it is laid out, and
nothing moves between devices except where the code says `reshard` or gives an `out_sharding`.
With no mesh set the same code runs on one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gptj.config import ModelConfig
from gptj.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

BATCH_AXES = ("data", "fsdp")
"""The mesh axes that split the batch: every sum over a batch crosses them."""

LOGICAL_TO_MESH: dict[str, str | tuple[str, ...] | None] = {
    "layers": None,
    "batch": BATCH_AXES,
    "embed": "fsdp",  # the d_model dim of a stored weight; activations keep theirs whole
    "heads": "tensor",
    "ffn": "tensor",
    "vocab": "tensor",
    "rank": "tensor",  # of an adapter, where what it is added to is a partial sum over `tensor`
}
"""Logical axis -> mesh axes. `None` in a logical shape is a dim that is never split."""


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
    """A mesh with the axes `data`, `fsdp` and `tensor`, all explicit.

    `data` copies the model and splits the batch; `fsdp` splits the batch and the stored weights;
    `tensor` splits the heads, the feed-forward and the vocabulary.

    Raises:
      UserError: the product of the three is not a number of devices that is there.
    """
    devices = jax.devices() if devices is None else devices
    for axis, parts in zip(MESH_AXES, (data, fsdp, tensor), strict=True):
        if parts < 1:
            raise UserError(f"mesh {axis}={parts} must be at least 1")
    size = data * fsdp * tensor
    if size > len(devices):
        raise UserError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} needs {size} devices, there are "
            f"{len(devices)}: lower one of the three"
        )
    if size < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} is of {size} devices, the "
            f"{jax.process_count()} hosts have {len(devices)}: raise one of the three to use all"
        )
    # As `jax.make_mesh`, which on most TPUs refuses axes that share one of the torus's.
    placed = mesh_utils.create_device_mesh(
        (data, fsdp, tensor), list(devices)[:size], allow_split_physical_axes=True
    )
    return jax.sharding.Mesh(placed, MESH_AXES, axis_types=(AxisType.Explicit,) * 3)


def check_mesh(config: ModelConfig) -> None:
    """Refuse a mesh that does not divide the model.

    Raises:
      UserError: naming the mesh axis, the dimension it does not divide, and both sizes.
    """
    check_divides(config, jax.sharding.get_abstract_mesh().shape)


def check_divides(config: ModelConfig, sizes: Mapping[str, int]) -> None:
    """The same of a mesh whose axes have these sizes, set or not."""
    for dim, axis in (
        ("heads", "tensor"),
        ("d_ff", "tensor"),
        ("padded_vocab_size", "tensor"),
        ("d_model", "fsdp"),
    ):
        if getattr(config, dim) % sizes.get(axis, 1):
            raise UserError(
                f"the mesh axis {axis}={sizes[axis]} does not divide the model's "
                f"{dim}={getattr(config, dim)}: choose a divisor of it"
            )


def batch_ways() -> int:
    """Into how many parts the mesh that is set splits a batch."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(axis, 1) for axis in BATCH_AXES)


def check_batch(batch: int) -> None:
    """Refuse a batch of `batch` rows that the mesh's data and fsdp axes cannot split evenly."""
    ways = batch_ways()
    if batch % ways:
        raise UserError(
            f"a batch of {batch} rows cannot be split over data x fsdp = {ways} devices: "
            f"use a multiple of {ways}"
        )


def spec(
    *axes: str | None, unreduced: Sequence[str] = (), reduced: Sequence[str] = ()
) -> PartitionSpec | None:
    """The sharding of an array with these logical axes on the mesh that is set, `None` without.

    `unreduced` mesh axes hold partial sums still to be added; `reduced` ones hold a finished copy
    whose gradient comes back as partial sums (the two are each other's transposes).

    Raises:
      UserError: the mesh was not made by `make_mesh`.
      AssertionError: two dims claim one mesh axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None
    if mesh.axis_names != MESH_AXES or set(mesh.axis_types) != {AxisType.Explicit}:
        raise UserError(
            f"the mesh that is set has axes {mesh.axis_names} of types {mesh.axis_types}: "
            f"make it with gptj.make_mesh, which gives explicit {MESH_AXES}"
        )
    dims = [None if axis is None else LOGICAL_TO_MESH[axis] for axis in axes]
    used = [name for dim in dims if dim for name in ((dim,) if isinstance(dim, str) else dim)]
    assert len(used) == len(set(used)), f"axes {axes} claim a mesh axis twice: {used}"
    return PartitionSpec(*dims, unreduced=set(unreduced), reduced=set(reduced))


def split_as(x: jax.Array, *dims: int | None) -> PartitionSpec | None:
    """Dims split over the mesh that is set as these of `x` are; `None` is one that is whole."""
    if spec() is None:
        return None
    own = jax.typeof(x).sharding.spec
    return PartitionSpec(*(None if dim is None else own[dim] for dim in dims))


def on_mesh(layout: PartitionSpec | None) -> NamedSharding | None:
    """The sharding on the mesh that is set, which may be an abstract one; `None` without."""
    if layout is None:
        return None
    mesh = jax.sharding.get_mesh()
    return NamedSharding(jax.sharding.get_abstract_mesh() if mesh.empty else mesh, layout)


def reshard(
    x: jax.Array,
    *axes: str | None,
    unreduced: Sequence[str] = (),
    reduced: Sequence[str] = (),
) -> jax.Array:
    """Lay `x` out as `spec` says, moving or summing what that takes; `x` itself without a mesh."""
    sharding = spec(*axes, unreduced=unreduced, reduced=reduced)
    return x if sharding is None else jax.reshard(x, sharding)


def reshape(x: jax.Array, shape: Sequence[int], *axes: str | None) -> jax.Array:
    """`x.reshape(shape)` with the result's logical axes said, as splitting a dim needs."""
    return jnp.reshape(x, shape, out_sharding=spec(*axes))


def place(x: np.ndarray, *axes: str | None) -> jax.Array:
    """A host array put on the mesh that is set, or on the default device without one."""
    return place_parts(x.shape, lambda part: x[part], *axes)


Part = tuple[slice, ...]
"""Which part of an array, as one slice a dim."""


def local_parts(shape: tuple[int, ...], *axes: str | None) -> list[Part]:
    """The parts that this host's devices hold of an array on the mesh that is set."""
    sharding = spec(*axes)
    if sharding is None:
        return [tuple(slice(0, size) for size in shape)]
    placed = NamedSharding(jax.sharding.get_mesh(), sharding)
    return [part for part in placed.addressable_devices_indices_map(shape).values() if part]


def place_parts(
    shape: tuple[int, ...], read: Callable[[Part], np.ndarray], *axes: str | None
) -> jax.Array:
    """An array on the mesh that is set, each host reading the parts of its own devices only."""
    sharding = spec(*axes)
    if sharding is None:
        (whole,) = local_parts(shape)
        return jnp.asarray(read(whole))
    placed = NamedSharding(jax.sharding.get_mesh(), sharding)

    def part(index: Part | None) -> np.ndarray:
        assert index is not None, "a device of ours holds nothing"
        return read(index)

    return jax.make_array_from_callback(shape, placed, part)
