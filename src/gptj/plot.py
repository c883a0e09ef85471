"""A run's curves as a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro
from numpy.typing import NDArray

from gptj.errors import UserError
from gptj.train.metrics import METRICS, read_metrics
from gptj.train.sinks import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#0b7285", "#d9480f", "#5f3dc4", "#2b8a3e", "#a61e4d")
INK, FAINT = "#212529", "#adb5bd"
SUFFIXES = (".png", ".svg", ".pdf")


@dataclasses.dataclass(frozen=True)
class PlotConfig:
    """Draw the curves of one run, or of several on the same axes, as a PNG."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of `gptj train` runs."""
    out: Path = Path("curves.png")
    """The picture to write; its suffix may also be .svg or .pdf."""


def plot(config: PlotConfig) -> None:
    """Draw training and held-out loss, gradient norm and speed against the step.

    Raises:
      UserError: a run has no metrics, or matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plotting needs matplotlib: pip install 'gptj[plot]'") from None
    if config.out.suffix not in SUFFIXES:
        raise UserError(f"out={config.out} must end in one of {', '.join(SUFFIXES)}")
    if not config.runs:
        raise UserError("no run to plot: name the folder of one")
    rows = {run: read_metrics(run) for run in config.runs}
    for run, measured in rows.items():
        if not measured:
            raise UserError(f"{run} has no metrics: give the folder of a run ({METRICS} in it)")

    figure = Figure(figsize=(9, 4.6), dpi=150, layout="constrained")
    grid = figure.add_gridspec(2, 3)
    loss = figure.add_subplot(grid[:, :2])
    norm, speed = figure.add_subplot(grid[0, 2]), figure.add_subplot(grid[1, 2])
    for (run, measured), color in zip(rows.items(), COLORS * len(rows), strict=False):
        _draw_loss(loss, measured, color, run.name if len(rows) > 1 else "")
        _draw(norm, measured, "grad_norm", color)
        _draw(speed, measured, "tokens_per_second", color)
    _finish(loss, "cross-entropy (nats a token)", "step")
    loss.legend(frameon=False)
    # The first steps' peak would hide all that follows.
    norm.set_ylim(0, 1.3 * max(map(_usual_peak, rows.values())) or None)
    _finish(norm, "gradient norm", "")
    speed.set_ylim(bottom=0)
    _finish(speed, "tokens a second", "step")
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(config.out)
    except OSError as error:
        raise UserError(
            f"{config.out} cannot be written ({error.strerror}): choose another --out"
        ) from error


def _draw_loss(axes: Axes, rows: Sequence[Row], color: str, name: str) -> None:
    steps, losses = _series(rows, "loss")
    axes.plot(steps, losses, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(steps, _smooth(losses), color=color, linewidth=1.8, label=f"{name} training".strip())
    steps, losses = _series(rows, "heldout_loss")
    if len(steps):
        axes.plot(
            steps, losses, "o--", color=color, markersize=4, linewidth=1, markerfacecolor="white",
            label=f"{name} held-out: {losses[-1]:.3f} at the end".strip(),
        )  # fmt: skip


def _draw(axes: Axes, rows: Sequence[Row], name: str, color: str) -> None:
    steps, values = _series(rows, name)
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(steps, _smooth(values), color=color, linewidth=1.4)


def _usual_peak(rows: Sequence[Row]) -> float:
    """The gradient norm that all but a fiftieth of the steps stay below; 0 where there is none."""
    norms = _series(rows, "grad_norm")[1]
    finite = norms[np.isfinite(norms)]
    return float(np.quantile(finite, 0.98)) if len(finite) else 0.0


def _series(rows: Sequence[Row], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = [(row["step"], row[name]) for row in rows if name in row]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over a window of a fortieth of the curve around each point."""
    width = max(1, len(values) // 40)
    if len(values) <= 2 * width:
        return values
    window = np.ones(2 * width + 1)
    weight = np.convolve(np.ones(len(values)), window, mode="same")
    return np.convolve(values, window, mode="same") / weight


def _finish(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(xlabel, color=INK)
    axes.grid(True, color=FAINT, alpha=0.3, linewidth=0.6)
    axes.tick_params(colors=INK, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
