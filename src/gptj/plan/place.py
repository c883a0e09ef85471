"""Hardware by its cloud name: which devices it has, and how fast a group of them exchanges."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Sequence

from gptj import accelerators
from gptj.accelerators import NETWORK, Accelerator
from gptj.errors import UserError

_SMALL = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    **{8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8"},
    **{512: "4x8x8", 1024: "8x8x8", 2048: "8x8x16", 4096: "8x16x16", 8192: "16x16x16"},
}
_PODS = {8: "2x2", 32: "4x4", 64: "4x8", 128: "8x8", 256: "8x16", 512: "16x16"}
SLICES = {
    "v2": {size: shape for size, shape in _PODS.items() if size != 64},
    "v3": _PODS | {1024: "16x32", 2048: "32x32"},
    "v4": _CUBES,
    "v5e": _SMALL,
    "v5p": _CUBES,
    "v6e": _SMALL,
    "tpu7x": {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4"},
}
"""By kind: the number in the cloud's name, and the chips' arrangement. In the names of v2 to v4, of
v5p and of tpu7x the number counts cores, two a chip."""

_KINDS = {
    **{"v2": "TPU v2", "v3": "TPU v3", "v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5p"},
    **{"v6e": "TPU v6 lite", "tpu7x": "TPU7x"},
}
_ALIASES = {"v5litepod": "v5e", "7x": "tpu7x"}
_GPUS = {
    re.sub("[ -]+", "-", each.kind.lower()): each
    for each in accelerators.ACCELERATORS
    if each.node and each.memory
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a program is to run."""

    name: str
    platform: str
    """tpu, gpu or cpu."""
    accelerator: Accelerator
    devices: int
    """What JAX would count."""
    topology: str = ""
    """Of a TPU, how its compiler calls it."""

    @property
    def chips(self) -> int:
        """What is rented: chips, of a GPU or CPU the devices."""
        return self.devices // self.accelerator.cores


def find(name: str) -> Place:
    """The hardware called `name`: v3-256, v5e:4x4, h100:8, cpu:8.

    Raises:
      UserError: there is none of that name; the message lists those there are.
    """
    word = name.lower().strip()
    kind, separator, size = word.rpartition(":") if ":" in word else word.rpartition("-")
    if word in _GPUS or not separator:
        kind, size = word, "1"
    kind = _ALIASES.get(kind, kind)
    if kind == "cpu" and size.isdigit() and int(size):
        return _cpu(int(size))
    if kind in _GPUS and size.isdigit() and int(size):
        return Place(f"{kind}:{size}", "gpu", _GPUS[kind], int(size))
    if kind in SLICES and size.isdigit() and int(size) in SLICES[kind]:
        return _tpu(f"{kind}-{size}", kind, SLICES[kind][int(size)])
    if kind in SLICES and re.fullmatch(r"\d+(x\d+){1,2}", size):
        return _tpu(f"{kind}:{size}", kind, size)
    raise UserError(f"no hardware {name!r}: choose one of {known()}")


def known() -> str:
    """The names there are, in words."""
    slices = (f"{kind}-{'|'.join(map(str, sizes))}" for kind, sizes in SLICES.items())
    gpus = (f"{kind}:N" for kind in _GPUS)
    return f"{', '.join(slices)}, {', '.join(gpus)}, cpu:N, or a TPU's arrangement, as v5p:4x4x8"


def _tpu(name: str, kind: str, shape: str) -> Place:
    accelerator = accelerators.named(_KINDS[kind])
    assert accelerator is not None
    chips = math.prod(int(size) for size in shape.split("x"))
    return Place(name, "tpu", accelerator, chips * accelerator.cores, f"{kind}:{shape}")


def _cpu(devices: int) -> Place:
    """So many devices that share this machine, at the speed that is measured now."""
    from gptj.hardware import measured_bandwidth, measured_flops

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    bandwidth = measured_bandwidth(1 << 28, 0.2) / devices
    source = "measured on this machine, which the devices share"
    made = (measured_flops() / devices, memory / devices, bandwidth, bandwidth)
    return Place(f"cpu:{devices}", "cpu", Accelerator("cpu", *made, source), devices)


Coordinates = Sequence[int]
"""A chip's place in its torus, and last the core's in its chip."""


def exchange_rate(place: Place, group: Sequence[int], coordinates: Sequence[Coordinates]) -> float:
    """Bytes a second that each device of a group can send to its others, at best.

    All groups of the mesh exchange at the same time. On a TPU a ring uses both directions of a
    torus dim whose ends are joined, and one where they are not; the cores of a chip share its
    links. GPUs of one node go through its switch, those of several through the network.

    Args:
      group: places in the mesh, row by row.
      coordinates: those of every device of the mesh, of a TPU.
    """
    unit = place.accelerator
    if place.platform == "gpu":
        first = group[0] // unit.node
        inside = sum(device // unit.node == first for device in group)
        return unit.link if inside == len(group) else min(unit.link, inside * NETWORK)
    if place.platform == "cpu":
        return unit.link
    chips = {tuple(coordinates[device][:-1]) for device in group}
    if len(chips) == 1:  # through the chip's own memory
        return unit.bandwidth
    shape = [int(size) for size in place.topology.split(":")[1].split("x")]
    links = sum(
        _links(column, whole, unit)
        for column, whole in zip(zip(*chips, strict=True), shape, strict=False)
    )
    return links * unit.link * (len(group) / len(chips)) / unit.cores


def _links(column: Iterable[int], whole: int, unit: Accelerator) -> float:
    """How many of a chip's links along a torus dim a ring over these places has to itself.

    Where other groups stand in between, each message passes their chips, and theirs pass these.
    """
    places = set(column)
    extent = len(places)
    if extent == 1:
        return 0
    stride = (max(places) - min(places)) / (extent - 1)
    is_ring = extent * stride == whole and not whole % unit.whole_ring
    return (2 if is_ring else 1) / stride
