"""The programs that train and serve, compiled for devices that need not be there."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from gptj.attention import Backend, default_backend
from gptj.convert.load import abstract_params
from gptj.errors import UserError
from gptj.model import Params
from gptj.plan import sequential
from gptj.plan.job import Job, Mesh
from gptj.plan.place import Place, exchange_rate, known
from gptj.plan.program import Collective, read
from gptj.sharding import BATCH_AXES, MESH_AXES, make_mesh
from gptj.train.state import TrainState, abstract_state
from gptj.train.step import train_step


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A collective, and which mesh axes it crosses."""

    kind: str
    axes: tuple[str, ...]
    devices: int
    """How many exchange with one another."""
    bytes: int
    """What one device holds of it when it is whole, each time."""
    times: int
    """In one step, all loops multiplied out."""
    seconds: float
    """Of all those times, at the interconnect's best."""
    is_hidden: bool = False
    """Whether the compiler lets products go on meanwhile."""
    arrays: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program, for one device."""

    seconds: float
    """What compiling took."""
    arguments: int
    """Bytes of what it is given: weights, optimizer, tokens."""
    temporaries: int
    """Bytes of all else it needs at one time."""
    weights: int
    """What is trained, and where that is adapters the weights beside them."""
    optimizer: int
    traffic: float
    """Bytes that it reads from memory and writes there."""
    exchanges: tuple[Exchange, ...]
    open_loops: int
    versions: str
    attention: Backend | None = None
    """Of a training step, what computes it."""

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.arguments + self.temporaries


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """What the compiler says of a program that has no room."""

    seconds: float
    needed: float
    """Bytes."""
    available: float
    words: str


def devices(place: Place) -> list[jax.Device]:
    """The hardware's devices, for the compiler; on a CPU real ones."""
    if place.platform == "tpu":
        options: dict[str, Any] = {}
        if place.topology.startswith("v4"):
            options["chip_config_name"] = "megacore"
        if place.chips == 1:
            options["chips_per_host_bounds"] = (1, 1, 1)
        try:
            found = topologies.get_topology_desc(place.topology, platform="tpu", **options)
        except jax.errors.JaxRuntimeError as error:
            raise UserError(
                f"libtpu does not know {place.name} ({str(error).splitlines()[0]}): choose one of "
                f"{known()}"
            ) from None
        return list(found.devices)
    return list(jax.devices())


def mesh_of(shape: Mesh, place: Place) -> jax.sharding.Mesh:
    """The mesh that training would set there."""
    return make_mesh(*shape, devices(place))


def coordinates(mesh: jax.sharding.Mesh) -> list[tuple[int, ...]]:
    """Where each device of the mesh sits, row by row; empty where none says so."""
    flat = mesh.devices.flat
    if not hasattr(flat[0], "coords"):
        return []
    return [(*device.coords, device.core_on_chip) for device in mesh.devices.flat]


def axis_rates(shape: Mesh, place: Place) -> dict[str, float]:
    """Bytes a second that a device can send its others along each set of mesh axes, as `a+b`."""
    where = coordinates(mesh_of(shape, place)) if place.platform == "tpu" else []
    order, rates = np.arange(math.prod(shape)).reshape(shape), {}
    crossed = [axis for axis in range(3) if shape[axis] > 1]
    for count in range(1, len(crossed) + 1):
        for axes in itertools.combinations(crossed, count):
            index = tuple(slice(None) if axis in axes else 0 for axis in range(3))
            rate = exchange_rate(place, order[index].reshape(-1).tolist(), where)
            rates["+".join(MESH_AXES[axis] for axis in axes)] = rate
    return rates


def compile_step(job: Job) -> Compiled | TooLarge:
    """Compile the step that `gptj train` would run, without data or weights.

    Raises:
      UserError: the compiler does not know the hardware.
    """
    mesh = mesh_of(job.mesh, job.place)
    begin = time.perf_counter()
    blocks = sequential.blocks() if job.sequential else contextlib.nullcontext()
    is_alone = job.place.platform == "cpu" and math.prod(job.mesh) == 1  # and sets no mesh
    with contextlib.nullcontext() if is_alone else jax.set_mesh(mesh), blocks:
        state, base = arguments(job)
        shape = (job.accumulate, job.batch // job.accumulate, job.width)
        parts = PartitionSpec(None, BATCH_AXES, None)
        layout = None if is_alone else NamedSharding(mesh, parts)
        tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout)
        lowered = train_step.lower(
            state, tokens, base, model=job.model, optimizer=job.optimizer, config=job.step
        )
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return too_large(str(error), time.perf_counter() - begin)
        attention = job.compute.attention or default_backend(job.compute.dtype, job.model.d_head)
    found = facts(compiled, job.place, job.mesh, mesh, begin, *state_bytes(state, base))
    return dataclasses.replace(found, attention=attention)


def facts(
    compiled: Any,
    place: Place,
    shape: Mesh,
    mesh: jax.sharding.Mesh,
    begin: float,
    weights: int,
    optimizer: int,
) -> Compiled:
    """What a compiled program says of itself."""
    memory, program = compiled.memory_analysis(), read(compiled.as_text())
    where = coordinates(mesh)
    return Compiled(
        seconds=time.perf_counter() - begin,
        arguments=memory.argument_size_in_bytes,
        temporaries=_temporaries(memory, place),
        weights=weights,
        optimizer=optimizer,
        traffic=program.traffic,
        exchanges=tuple(_exchange(each, place, shape, where) for each in program.collectives),
        open_loops=program.open_loops,
        versions=_versions(place),
    )


def _temporaries(memory: Any, place: Place) -> int:
    """What a program needs beside its arguments.

    A CPU's runtime allocates all that is called temporary at once. The TPU's compiler counts under
    that name other memories than the main one as well; what it holds against the main one is the
    peak.
    """
    if place.platform == "tpu":
        return max(0, memory.peak_memory_in_bytes - memory.argument_size_in_bytes)
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + max(0, made)


def _versions(place: Place) -> str:
    from importlib import metadata

    libtpu = f", libtpu {metadata.version('libtpu')}" if place.platform == "tpu" else ""
    return f"JAX {jax.__version__}{libtpu}"


def _exchange(
    found: Collective, place: Place, shape: Mesh, where: list[tuple[int, ...]]
) -> Exchange:
    group = found.group or tuple(range(math.prod(shape)))
    places = np.array(np.unravel_index(group, shape))
    crossed = [axis for axis in range(3) if len(set(places[axis].tolist())) > 1]
    rate = exchange_rate(place, group, where) if len(group) > 1 else math.inf
    return Exchange(
        kind=found.kind,
        axes=tuple(MESH_AXES[axis] for axis in crossed),
        devices=len(group),
        bytes=found.bytes,
        times=found.times,
        seconds=found.times * exchange_seconds(found.kind, found.bytes, len(group), rate),
        is_hidden=found.is_hidden,
        arrays=found.arrays,
    )


HOP = 1e-6
"""Seconds that a message takes to a neighbour, whatever its size: "How to Scale Your Model",
https://jax-ml.github.io/scaling-book/sharding."""


def exchange_seconds(kind: str, size: float, devices: int, rate: float) -> float:
    """How long a ring of so many devices takes to exchange `size` bytes.

    An all-reduce is a reduce-scatter and an all-gather; in each, every device sends all but its own
    part once.
    """
    if devices < 2:
        return 0.0
    parts = {"all-reduce": 2.0, "collective-permute": devices / (devices - 1)}.get(kind, 1.0)
    latency = HOP * (devices // 2 if kind != "collective-permute" else 1) * min(parts, 2)
    return max(latency, parts * (devices - 1) / devices * size / rate)


def arguments(job: Job) -> tuple[TrainState, Params[Any] | None]:
    """The state that a step is given, and the weights beside adapters, on the mesh that is set."""
    lora = job.compute.lora
    state = abstract_state(job.model, job.optimizer, lora)
    if not job.adapts:
        return state, None
    return state, abstract_params(job.model, jnp.dtype(job.compute.dtype), lora.quantize)


def state_bytes(state: TrainState, base: Params[Any] | None) -> tuple[int, int]:
    """Bytes of a device's part of all weights, and of the optimizer's state."""
    return device_bytes((state.params, base)), device_bytes(state.opt_state)


def device_bytes(tree: Any) -> int:
    """Bytes of a device's part of all arrays in a tree of shapes on a mesh."""
    leaves: list[jax.ShapeDtypeStruct] = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


_SIZES = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_HAD = (
    r"total memory required for HLO temporaries \(([\d.]+)([BKMGT])\) exceeds available HBM "
    r"\(([\d.]+)([BKMGT])\)",
    r"Used ([\d.]+)([BKMGT]) of ([\d.]+)([BKMGT]) hbm",
)


def too_large(message: str, seconds: float) -> TooLarge:
    """What the compiler's complaint says.

    Raises:
      RuntimeError: it complains of something else than memory.
    """
    for pattern in _HAD:
        if found := re.search(pattern, message):
            needed, available = (float(found[i]) * _SIZES[found[i + 1]] for i in (1, 3))
            return TooLarge(seconds, needed, available, message.splitlines()[0])
    raise RuntimeError(message)
