"""Pictures of the fifth chapter."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from gptj.plot import COLORS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TEAL, ORANGE, VIOLET = COLORS[:3]


def sums() -> Figure:
    """What the same numbers add up to, in many orders."""
    draw, count = np.random.default_rng(0), 4000
    numbers = draw.normal(size=4096).astype(np.float32)
    exact = math.fsum(numbers.tolist())
    found = np.array([np.cumsum(draw.permutation(numbers))[-1] for _ in range(count)], float)
    last_bit = abs(float(np.spacing(np.float32(exact))))
    away = (found - exact) / last_bit
    figure = Figure(figsize=(11, 4.2))
    axes = figure.subplots()
    values, orders = np.unique(away, return_counts=True)
    axes.bar(values, orders, width=0.8, color=TEAL)
    axes.axvline(0, color=ORANGE, linewidth=1.6)
    axes.set_ylim(0, 1.15 * orders.max())
    axes.text(0.7, 1.08 * orders.max(), "the exact sum", color=ORANGE, va="center")
    axes.text(0.02, 0.95, f"{count:,} orders,\n{len(values)} different sums", color=TEAL, va="top",
              transform=axes.transAxes, fontsize=13)  # fmt: skip
    axes.set_ylabel("orders with this sum")
    axes.set_xlabel("from the exact sum, in units of the last bit")
    return figure


def company() -> Figure:
    """What company changes in a naive batch and in the engine's, and what a change is worth."""
    dtypes = _measured()["dtypes"]
    figure = Figure(figsize=(11, 5.2))
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.25})
    _shares(left, dtypes)
    _gaps(right, dtypes)
    return figure


def _measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "exactness.json").read_text())
    return found


def _shares(axes: Axes, dtypes: dict[str, Any]) -> None:
    """The share of numbers that have another bit, by how many are in the batch."""
    lines = {
        "naive, float32": (dtypes["float32"]["naive"]["changed"], TEAL, -20),
        "naive, bfloat16": (dtypes["bfloat16"]["naive"]["changed"], ORANGE, 9),
        "the engine, both": (dtypes["bfloat16"]["engine"]["changed"], VIOLET, 9),
    }
    for name, (changed, color, above) in lines.items():
        sizes, shares = [int(size) for size in changed], [100 * each for each in changed.values()]
        axes.plot(sizes, shares, "o-", color=color, linewidth=2.2, markersize=7, clip_on=False)
        axes.annotate(name, (sizes[-1], shares[-1]), (0, above), textcoords="offset points",
                      ha="right", color=color)  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks([2, 4, 8, 16, 32], ["2", "4", "8", "16", "32"])
    axes.minorticks_off()
    axes.set(ylim=(0, 112), xlim=(1.7, 36), xlabel="prompts in the batch")
    axes.set_yticks([0, 25, 50, 75, 100], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_title("numbers that are not as they are alone", loc="left", fontsize=12, color=INK)


def _gaps(axes: Axes, dtypes: dict[str, Any]) -> None:
    """How near the two likeliest tokens are, and how far company moves a logit."""
    gaps = np.array(dtypes["bfloat16"]["naive"]["gaps"])
    below = np.linspace(0, 100, len(gaps))
    axes.plot(gaps, below, color=INK, linewidth=2.2)
    axes.text(1.2e-3, 32, "share of tokens\nwhose two likeliest\nare nearer than this", ha="right",
              va="center", color=INK, fontsize=10)  # fmt: skip
    axes.annotate("", (0.25, 22), (1.6e-3, 30), arrowprops={"arrowstyle": "-|>", "color": INK})
    for dtype, color in (("float32", TEAL), ("bfloat16", ORANGE)):
        moved = dtypes[dtype]["naive"]["by"]["median"]
        axes.axvline(moved, color=color, linewidth=2)
        share, places = np.interp(moved, gaps, below), dtypes[dtype]["naive"]["parted"]
        parted = sum(place is not None for place in places)
        said = f"company moves\na {dtype} logit\nso far: {share:.1f} % are\nnearer, and {parted} of"
        said += f"\n{len(places)} answers part"
        axes.text(1.4 * moved, 97, said, color=color, va="top", fontsize=10)
    axes.set_xscale("log")
    axes.set(xlim=(2e-8, 20), ylim=(0, 100), xlabel="difference of two logits")
    axes.set_yticks([0, 25, 50, 75, 100], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_title("how much it takes", loc="left", fontsize=12, color=INK)


PICTURES: dict[str, Callable[[], Figure]] = {
    "exactness-sums.svg": sums,
    "exactness-company.svg": company,
}
