"""Pictures: a run's curves, models' scores, lengths of documents, bars, growth, rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray

from gptj.errors import UserError
from gptj.train.metrics import METRICS, read_metrics
from gptj.train.sinks import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0b7285", "#d9480f", "#5f3dc4", "#2b8a3e", "#a61e4d")
INK, FAINT = "#212529", "#adb5bd"
SUFFIXES = (".png", ".svg", ".pdf")


@dataclasses.dataclass(frozen=True)
class PlotConfig:
    """Draw the curves of one run, or of several on the same axes."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of `gptj train` runs."""
    out: Path = Path("curves.png")
    """The picture to write: a .png, .svg or .pdf."""


class Point(NamedTuple):
    """A model's score, and what its training cost in floating-point operations."""

    name: str
    flops: float | None
    score: float
    error: float | None = None


class Bar(NamedTuple):
    """A bar: whose it is, how long, and what is written at its end."""

    name: str
    size: float
    said: str


def plot_bars(
    groups: Mapping[str, Sequence[Bar]], title: str, xlabel: str, limit: float | None, out: Path
) -> None:
    """Draw bars in groups, one below the other, and a line at what none can be longer than.

    Raises:
      UserError: `out` cannot be written, or matplotlib is not installed.
    """
    count = sum(map(len, groups.values())) + len(groups)
    figure = _figure((8, 0.9 + 0.3 * count))
    axes = figure.subplots()
    colors: dict[str, str] = {}
    at, ticks = 0.0, []
    for group, bars in groups.items():
        axes.text(0, at, group, fontsize=9, fontweight="bold", color=INK, va="center")
        for bar in bars:
            at += 1
            color = colors.setdefault(bar.name.split()[0], COLORS[len(colors) % len(COLORS)])
            axes.barh(at, bar.size, height=0.72, color=color)
            axes.text(bar.size, at, f" {bar.said}", fontsize=8, color=INK, va="center")
            ticks.append((at, bar.name))
        at += 1.2
    axes.set_yticks([y for y, _ in ticks], [name for _, name in ticks])
    axes.set_ylim(at - 0.6, -0.6)
    if limit:
        axes.axvline(limit, color=INK, linewidth=1.2)
    axes.set_xlim(0, 1.15 * max(limit or 0, *(x.size for bars in groups.values() for x in bars)))
    _finish(axes, title, xlabel)
    axes.grid(False, axis="y")
    _save(figure, out)


class Line(NamedTuple):
    """What was measured at each of some sizes."""

    name: str
    sizes: Sequence[float]
    found: Sequence[float]


def plot_growth(panels: Mapping[str, Sequence[Line]], out: Path) -> None:
    """Draw how what each panel is named after grows with sizes, both axes logarithmic.

    Raises:
      UserError: `out` cannot be written, or matplotlib is not installed.
    """
    figure, frames = _frames(len(panels))
    for (title, lines), axes in zip(panels.items(), frames, strict=False):
        for line, color in zip(lines, COLORS * len(lines), strict=False):
            axes.plot(line.sizes, line.found, "o-", color=color, markersize=4, label=line.name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        least = min(min(line.found) for line in lines)
        most = max(max(line.found) for line in lines)
        spare = max(1.2, (30 * least / most) ** 0.5)  # what hardly grows is to look so
        axes.set_ylim(least / spare, most * spare)
        axes.legend(frameon=False, fontsize=7)
        _finish(axes, title, "size")
    _save(figure, out)


def plot_scores(panels: Mapping[str, tuple[Sequence[Point], Point]], out: Path) -> None:
    """Draw scores against training FLOPs: of each title the models known, and one of our own.

    Those without FLOPs are left out; our own without them is a line across. A name's last part is
    the model's size, the rest its family, which is drawn as one curve.

    Raises:
      UserError: `out` cannot be written, or matplotlib is not installed.
    """
    figure, frames = _frames(len(panels))
    for (title, (known, own)), axes in zip(panels.items(), frames, strict=False):
        _draw_families(axes, [point for point in known if point.flops])
        if own.flops:
            spread = None if own.error is None else [[own.error], [own.error]]
            axes.errorbar(own.flops, own.score, spread, fmt="D", color=INK, label=own.name)
        else:
            axes.axhline(own.score, color=INK, linewidth=1.4, label=own.name)
        axes.set_xscale("log")
        axes.margins(0.12)
        _finish(axes, title, "training FLOPs")
    for axes in frames:
        axes.set_axis_off()
    figure.axes[0].legend(frameon=False, fontsize=7, loc="upper left")
    _save(figure, out)


def _frames(count: int) -> tuple[Figure, Iterator[Axes]]:
    """A figure with room for so many panels, at most three side by side."""
    across = min(count, 3)
    down = -(-count // across)
    figure = _figure((4.2 * across, 3.4 * down))
    return figure, figure.subplots(down, across, squeeze=False).flat


def plot_lengths(counts: Mapping[str, NDArray[np.int64]], out: Path) -> None:
    """Draw how long documents are: of each name how many have 2**k to 2**(k + 1) - 1 tokens.

    Raises:
      UserError: `out` cannot be written, or matplotlib is not installed.
    """
    figure = _figure((6, 3.6))
    axes = figure.subplots()
    for (name, own), color in zip(counts.items(), COLORS * len(counts), strict=False):
        share = 100 * own / own.sum()
        axes.stairs(share, 2.0 ** np.arange(len(own) + 1), color=color, label=name, linewidth=1.6)
    axes.set_xscale("log", base=2)
    axes.legend(frameon=False, fontsize=8)
    _finish(axes, "documents of each length, %", "tokens")
    _save(figure, out)


def check_picture(out: Path, option: str) -> None:
    """See that a picture of that name can be drawn.

    Raises:
      UserError: its suffix is of no known kind.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"{option}={out} must end in one of {', '.join(SUFFIXES)}")


def plot_rates(
    rates: Sequence[float],
    losses: Sequence[float],
    smooth: Sequence[float],
    suggested: float,
    out: Path,
) -> None:
    """Draw what learning rates did to the loss, and which is suggested.

    Raises:
      UserError: `out` cannot be written, or matplotlib is not installed.
    """
    figure = _figure((6, 3.6))
    axes = figure.subplots()
    axes.plot(rates, losses, color=COLORS[0], alpha=0.25, linewidth=0.8)
    axes.plot(rates, smooth, color=COLORS[0], linewidth=1.8, label="running mean")
    axes.axvline(suggested, color=COLORS[1], linewidth=1.4, label=f"suggested: {suggested:.1e}")
    axes.set_xscale("log")
    axes.legend(frameon=False, fontsize=8)
    _finish(axes, "cross-entropy (nats a token)", "learning rate")
    _save(figure, out)


def _draw_families(axes: Axes, points: Sequence[Point]) -> None:
    families: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.flops or 0):
        families.setdefault(point.name.rpartition("-")[0], []).append(point)
    for (family, members), color in zip(
        sorted(families.items()), COLORS * len(families), strict=False
    ):
        flops, scores = [each.flops or 0 for each in members], [each.score for each in members]
        axes.plot(flops, scores, "o-", color=color, markersize=4, linewidth=0.9, label=family)
        for each in members:
            size, at = each.name.rpartition("-")[2], (each.flops or 0, each.score)
            axes.annotate(size, at, (4, -8), textcoords="offset points", fontsize=6, color=color)


def _figure(size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plotting needs matplotlib: pip install 'gptj-jax[plot]'") from None
    return Figure(figsize=size, dpi=150, layout="constrained")


def _save(figure: Figure, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}): choose another place"
        ) from error


def plot(config: PlotConfig) -> None:
    """Draw training and held-out loss, gradient norm and speed against the step.

    Raises:
      UserError: a run has no metrics, or matplotlib is not installed.
    """
    figure = _figure((9, 4.6))
    check_picture(config.out, "out")
    if not config.runs:
        raise UserError("no run to plot: name the folder of one")
    rows = {run: read_metrics(run) for run in config.runs}
    for run, measured in rows.items():
        if not measured:
            raise UserError(f"{run} has no metrics: give the folder of a run ({METRICS} in it)")

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
    _save(figure, config.out)


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
