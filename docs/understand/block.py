"""Pictures of the first chapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from gptj.attention import rotary
from gptj.config import preset
from gptj.flops import multiplied
from gptj.plan.compiled import exchange_seconds
from gptj.plan.hardware import efficiency
from gptj.plan.place import Place, exchange_rate, find
from gptj.plot import COLORS, FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGE, LENGTH = preset("gpt-j-6b"), 2048
TEAL, ORANGE, VIOLET = COLORS[:3]
PALE, GREY = "#e3fafc", "#f1f3f5"


def orders() -> Figure:
    """The block as GPT-J has it, beside GPT-2's."""
    figure = Figure(figsize=(11, 7.4))
    panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    for axes, title in zip(
        panels, ("GPT-J: side by side", "GPT-2: one after the other"), strict=True
    ):
        axes.set(xlim=(0, 10), ylim=(0, 13.4))
        axes.axis("off")
        axes.text(0.3, 12.9, title, fontsize=14, fontweight="bold", color=INK)
        _arrow(axes, (0.9, 12.3), (0.9, 0.2), FAINT, 5)
        axes.text(1.2, 11.9, "stream", fontsize=11, color="#868e96")
    _parallel(panels[0])
    _sequential(panels[1])
    return figure


def _parallel(axes: Axes) -> None:
    _line(axes, (0.9, 11.2), (6.2, 11.2))
    _arrow(axes, (6.2, 11.2), (6.2, 10.55))
    _box(axes, 2.8, 9.7, 6.8, "LayerNorm")
    _line(axes, (6.2, 9.7), (6.2, 8.8))
    _line(axes, (4.3, 8.8), (8.1, 8.8))
    for middle, name, parts in (
        (4.3, "attention", "by heads"),
        (8.1, "feed-forward", "by columns"),
    ):
        _arrow(axes, (middle, 8.8), (middle, 7.75))
        _split(axes, middle, 4.4, name, parts)
        _line(axes, (middle, 4.4), (middle, 3.6))
    _line(axes, (4.3, 3.6), (8.1, 3.6))
    axes.text(6.2, 3.8, "added on the device", fontsize=10, color=INK, ha="center")
    _arrow(axes, (6.2, 3.6), (6.2, 2.8))
    _joins(axes, 6.2, 2.1)
    _backward(axes, 6.2, 9.25)
    axes.text(6.6, 9.08, "backward: one more", fontsize=10, color=ORANGE)
    axes.text(5.2, 1.05, "one all-reduce", fontsize=12, color=ORANGE, ha="center")


def _sequential(axes: Axes) -> None:
    for top, name, parts in (
        (11.2, "attention", "by heads"),
        (5.4, "feed-forward", "by columns"),
    ):
        _arrow(axes, (0.9, top), (2.2, top))
        _box(axes, 2.2, top - 0.45, 2.7, "LayerNorm")
        _arrow(axes, (4.9, top), (6.45, top))
        _backward(axes, 5.6, top)
        _split(axes, 8.2, top - 2.3, name, parts, 2.75)
        _arrow(axes, (8.2, top - 2.3), (8.2, top - 2.95))
        _joins(axes, 8.2, top - 3.65)
        axes.text(4.6, top - 3.35, "an all-reduce", fontsize=12, color=ORANGE, ha="center")
    axes.text(5.6, 11.6, "backward", fontsize=10, color=ORANGE, ha="center", va="bottom")
    axes.text(5.6, 5.8, "backward", fontsize=10, color=ORANGE, ha="center", va="bottom")


def _line(axes: Axes, begin: tuple[float, float], end: tuple[float, float]) -> None:
    axes.plot(*zip(begin, end, strict=True), color=INK, linewidth=1.4, solid_capstyle="butt")


def _arrow(
    axes: Axes,
    begin: tuple[float, float],
    end: tuple[float, float],
    color: str = INK,
    width: float = 1.4,
) -> None:
    size = 12 + 2 * width
    style = {"mutation_scale": size, "shrinkA": 0, "shrinkB": 0, "linewidth": width}
    axes.add_patch(FancyArrowPatch(begin, end, arrowstyle="-|>", color=color, **style))


def _box(axes: Axes, x: float, y: float, width: float, name: str) -> None:
    shape = FancyBboxPatch((x, y), width, 0.85, "round,pad=0,rounding_size=0.15")
    shape.set(facecolor=GREY, edgecolor="#868e96")
    axes.add_patch(shape)
    axes.text(x + width / 2, y + 0.42, name, fontsize=12, color=INK, ha="center", va="center")


def _split(axes: Axes, middle: float, y: float, name: str, parts: str, height: float = 3.3) -> None:
    """Something that eight devices share, each a strip of it."""
    width, strips = 3.5, height - 1.75
    left = middle - width / 2
    axes.add_patch(Rectangle((left, y), width, height, facecolor=PALE, edgecolor="none"))
    for device in range(8):
        strip = Rectangle((left + device * width / 8, y), width / 8, strips)
        strip.set(facecolor="#99e9f2" if device % 2 else "#66d9e8", edgecolor="white")
        axes.add_patch(strip)
    words = {"ha": "center", "va": "center"}
    axes.text(middle, y + height - 0.5, name, fontsize=12, fontweight="bold", color=TEAL, **words)
    axes.text(middle, y + strips + 0.35, parts, fontsize=10, color=INK, **words)


def _joins(axes: Axes, x: float, y: float) -> None:
    """An all-reduce, whose sum is added to the stream."""
    _arrow(axes, (x, y), (1.35, y))
    axes.plot([x], [y], "o", markersize=30, color=ORANGE, zorder=3)
    axes.text(x, y - 0.03, "Σ", fontsize=16, color="white", ha="center", va="center", zorder=4)
    axes.plot([0.9], [y], "o", markersize=21, markerfacecolor="white", color=INK, zorder=3)
    axes.text(0.9, y, "+", fontsize=14, color=INK, ha="center", va="center", zorder=4)


def _backward(axes: Axes, x: float, y: float) -> None:
    """Where the backward pass has one."""
    axes.plot([x], [y], "o", markersize=13, markerfacecolor="white", markeredgewidth=2,
              color=ORANGE, zorder=3)  # fmt: skip


def turning() -> Figure:
    """Which numbers of a head are turned, by how much, and what that does to a score."""
    dims, d_head = LARGE.rotary_dims, LARGE.d_head
    ones = jnp.tile(jnp.array([1.0, 0.0]), dims // 2)
    places = jnp.arange(LENGTH)
    heads = jnp.broadcast_to(ones, (1, LENGTH, 1, dims))
    turned = np.asarray(rotary(heads, places, dims, LARGE.rotary_base))[0, :, 0]
    figure = Figure(figsize=(11, 5.6))
    grid = figure.add_gridspec(2, 2, height_ratios=(0.16, 1), width_ratios=(1.25, 1), hspace=0.5)
    _head(figure.add_subplot(grid[0, :]), dims, d_head)
    axes = figure.add_subplot(grid[1, 0])
    shown = 128
    shades = LinearSegmentedColormap.from_list("turned", [VIOLET, "white"])
    axes.imshow(turned[:shown, ::2].T, aspect="auto", cmap=shades, vmin=-1, vmax=1,
                interpolation="nearest")  # fmt: skip
    axes.set_title("each pair's cosine: white 1, violet -1", loc="left", fontsize=12, color=INK)
    axes.set(xlabel="position of the token", ylabel="pair")
    axes = figure.add_subplot(grid[1, 1])
    axes.plot(turned @ turned[0] / (dims // 2), color=TEAL, linewidth=1.2)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, LENGTH)
    axes.set_xticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1,000"])
    axes.set_title("score of a query with an equal key", loc="left", fontsize=12, color=INK)
    axes.set(xlabel="distance in tokens", ylim=(-0.1, 1.05))
    return figure


def _head(axes: Axes, dims: int, d_head: int) -> None:
    for begin, width, color in ((0, dims, VIOLET), (dims, d_head - dims, "#dee2e6")):
        axes.add_patch(Rectangle((begin, 0), width, 1, facecolor=color, edgecolor="white"))
    axes.text(dims / 2, 0.5, f"{dims} turned, in {dims // 2} pairs", color="white", ha="center",
              va="center", fontsize=11)  # fmt: skip
    axes.text((dims + d_head) / 2, 0.5, f"{d_head - dims} as they are", color=INK, ha="center",
              va="center", fontsize=11)  # fmt: skip
    axes.set_title(f"the {d_head} numbers of a head", loc="left", fontsize=12, color=INK)
    axes.set(xlim=(0, d_head), ylim=(0, 1))
    axes.axis("off")


def price() -> Figure:
    """A layer's products and its all-reduces, by how many devices share it."""
    figure = Figure(figsize=(11, 5.2))
    panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.16})
    _bars(panels[0], "TPU v3, by cores that share a layer", find("v3-256"), (4, 8, 16, 32))
    _bars(panels[1], "H100, by GPUs that share a layer", find("h100:8"), (2, 4, 8))
    words = {"fontsize": 10, "va": "bottom"}
    panels[0].text(0.1, -0.36, "products", color=TEAL, **words)
    panels[0].text(5.95, -0.36, "all-reduces, their share", color=ORANGE, **words)
    return figure


def _bars(axes: Axes, title: str, place: Place, sizes: Sequence[int]) -> None:
    unit = place.accelerator
    work = 2 * multiplied(LARGE, with_output=False) / LARGE.layers * LENGTH
    longest = 0.0
    for row, size in enumerate(sizes):
        products = 1e3 * work / size / unit.peak_flops / efficiency(unit).share
        rate = exchange_rate(place, range(size), _block_of_cores(size))
        once = 1e3 * exchange_seconds("all-reduce", LENGTH * LARGE.d_model * 2, size, rate)
        longest = longest or products + 2 * once
        second = {"facecolor": "#ffe8cc", "edgecolor": ORANGE, "hatch": "////", "linewidth": 1}
        axes.barh(row, products, height=0.6, color=TEAL)
        axes.barh(row, once, left=products, height=0.6, color=ORANGE)
        axes.barh(row, once, left=products + once, height=0.6, **second)
        one, two = once / (products + once), 2 * once / (products + 2 * once)
        end = (products + 2 * once, row)
        label = {"textcoords": "offset points", "va": "center", "color": INK, "fontsize": 10}
        axes.annotate(f"{one:.0%}, with two {two:.0%}", end, (8, 0), **label)
    axes.set_yticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set(ylim=(3.5, -0.7), xlim=(0, 1.5 * longest))
    axes.set_title(title, loc="left", fontsize=12, color=INK)
    axes.set_xlabel(f"ms for {LENGTH:,} tokens, forward")
    axes.tick_params(axis="y", length=0)


def _block_of_cores(size: int) -> list[tuple[int, int, int]]:
    """So many cores of TPU chips that lie together in a rectangle, two cores a chip."""
    chips = max(1, size // 2)
    width = 2 ** (chips.bit_length() // 2)
    return [(x, y, core) for x in range(width) for y in range(chips // width) for core in (0, 1)]


PICTURES: dict[str, Callable[[], Figure]] = {
    "block-orders.svg": orders,
    "block-rotary.svg": turning,
    "block-price.svg": price,
}
