"""Pictures of the second chapter."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
from jax.sharding import NamedSharding
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gptj.config import preset
from gptj.plan.compiled import Exchange, axis_rates
from gptj.plan.estimate import exchanges
from gptj.plan.job import Job, Mesh
from gptj.plan.place import find
from gptj.plot import COLORS, FAINT, INK
from gptj.sharding import make_mesh, spec
from gptj.train.objective import StepConfig
from gptj.train.optimizer import OptimizerConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MESHES: dict[str, Mesh] = {
    "data=8": (8, 1, 1),
    "fsdp=8": (1, 8, 1),
    "tensor=8": (1, 1, 8),
    "2 x 2 x 2": (2, 2, 2),
}
ARRAYS = {
    "x": ((64, 32), ("batch", None)),
    "weight,\nstored": ((32, 128), ("embed", "ffn")),
    "product": ((64, 128), ("batch", "ffn")),
}
DEVICES = (*COLORS, "#1864ab", "#e67700", "#495057")
COPY = 1.8
"""How far behind one another copies are drawn."""

Parts = dict[tuple[tuple[int, int], ...], list[int]]
"""The devices that hold each part, which is a begin and an end a dim."""


def tiles() -> Figure:
    """Which device holds which part of three arrays, in four layouts."""
    figure = Figure(figsize=(11, 6.2))
    axes = figure.subplots()
    axes.set(xlim=(-32, 560), ylim=(212, -28), aspect=1.35)
    axes.axis("off")
    for column, (name, sizes) in enumerate(MESHES.items()):
        left, top = 145 * column, 0
        axes.text(left, -16, name, fontsize=13, fontweight="bold", color=INK)
        with jax.set_mesh(make_mesh(*sizes)):
            for shape, words in ARRAYS.values():
                _array(axes, left, top, _parts(shape, words))
                top += shape[0] + 22
    top = 0
    for name, (shape, _) in ARRAYS.items():
        axes.text(-6, top + shape[0] / 2, name, fontsize=11, color=INK, ha="right", va="center")
        top += shape[0] + 22
    return figure


def _parts(shape: tuple[int, int], words: tuple[str | None, ...]) -> Parts:
    """The parts of an array with these logical axes on the mesh that is set."""
    layout = spec(*words)
    assert layout is not None
    held: Parts = collections.defaultdict(list)
    index = NamedSharding(jax.sharding.get_mesh(), layout).devices_indices_map(shape)
    for device, part in index.items():
        ends = ((s.start or 0, s.stop or size) for s, size in zip(part, shape, strict=True))
        held[tuple(ends)].append(device.id)
    return held


def _array(axes: Axes, left: float, top: float, parts: Parts) -> None:
    """An array, each part in the colour of its device, as often as it is there."""
    for ((begin, end), (first, last)), devices in parts.items():
        behind = COPY * (len(devices) - 1)
        width, height = last - first - behind, end - begin - behind
        for place, device in reversed(list(enumerate(devices))):
            corner = left + first + COPY * place, top + begin + COPY * place
            color = DEVICES[device]
            shape = Rectangle(corner, width, height, facecolor=color, edgecolor="white", lw=0.5)
            axes.add_patch(shape)
        said = "all 8" if len(devices) == 8 else ", ".join(map(str, devices))
        if height > 6:  # else the colour has to do
            axes.text(left + first + width / 2, top + begin + height / 2, said, fontsize=10,
                      color="white", ha="center", va="center")  # fmt: skip


def traffic() -> Figure:
    """What a device sends in a step of GPT-J-6B, by layout, and as the batch grows."""
    figure = Figure(figsize=(11, 4.8))
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.3})
    _by_axis(left)
    rows = [8, 16, 32, 64, 128]
    for (name, mesh), color in zip(MESHES.items(), COLORS, strict=False):
        sent = [sum(_sent(each) for each in _exchanges(mesh, batch)) for batch in rows]
        right.plot(rows, sent, "o-", color=color, linewidth=2, markersize=5)
        right.annotate(name, (rows[-1], sent[-1]), (8, 0), textcoords="offset points",
                       color=color, va="center")  # fmt: skip
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks(rows, [str(count) for count in rows])
    right.set_yticks([10, 30, 100], ["10", "30", "100"])
    right.minorticks_off()
    right.set_xlim(7, 300)
    right.set_xlabel("rows of 2,048 tokens in a step, on all eight")
    right.set_title("GB a device sends, as the batch grows", loc="left", fontsize=12, color=INK)
    right.grid(True, axis="y", color="#e9ecef")
    return figure


def _by_axis(axes: Axes) -> None:
    """A bar a layout, in parts by what is exchanged."""
    colors = {"data": COLORS[0], "fsdp": COLORS[1], "tensor": COLORS[2]}
    words = {"data": "gradients", "fsdp": "weights, gradients", "tensor": "activations"}
    for row, (name, mesh) in enumerate(MESHES.items()):
        begin = 0.0
        for each in _exchanges(mesh, 8):
            sent = _sent(each)
            axes.barh(row, sent, left=begin, height=0.62, color=colors[each.axes[0]],
                      edgecolor="white")  # fmt: skip
            begin += sent
        said = words.get(name.split("=")[0], "a little of each")
        axes.annotate(said, (begin, row), (7, 0), textcoords="offset points", va="center",
                      color=INK, fontsize=10)  # fmt: skip
    axes.set_yticks(range(len(MESHES)), list(MESHES))
    axes.set(ylim=(3.5, -0.6), xlim=(0, 48))
    axes.set_xlabel("GB that a device sends")
    axes.tick_params(axis="y", length=0)
    axes.set_title("one step of eight rows", loc="left", fontsize=12, color=INK)
    axes.spines["left"].set_color(FAINT)


def _exchanges(mesh: Mesh, batch: int) -> list[Exchange]:
    """Those of a training step of GPT-J-6B on a node of eight H100."""
    place, compute = find("h100:8"), StepConfig(dtype="bfloat16", remat="block")
    job = Job(place, preset("gpt-j-6b"), mesh, batch, 1, 2048, OptimizerConfig(), compute)
    return exchanges(job, axis_rates(mesh, place))


def _sent(each: Exchange) -> float:
    """GB that a device sends: all but its own part, and in an all-reduce that twice."""
    often = 2 if each.kind == "all-reduce" else 1
    return often * (each.devices - 1) / each.devices * each.bytes * each.times / 1e9


PICTURES: dict[str, Callable[[], Figure]] = {
    "shardings-tiles.svg": tiles,
    "shardings-traffic.svg": traffic,
}
