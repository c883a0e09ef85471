"""One chart: curves as SVG that stretches to any width, and words around them that do not.

Its height is fixed in pixels, so labels can be kept apart here, without a browser's help.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gptj.report.curves import Series, decimate, smooth, thin
from gptj.report.html import Html, join, tag
from gptj.report.scale import Axis, number, tick_labels

HEIGHT, TALL = 168, 320
_GRID = 10_000  # the SVG's own units across and down; whole ones are finer than a pixel
_LABEL = 30  # pixels that the two lines of a curve's label need
_DOTS = 60  # more points than these are a line without dots


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric as a curve."""

    metric: str
    name: str = ""
    """What its end is labelled with, beside its last value."""
    color: int = 1
    kind: str = "line"
    """`line`; `mean`: smoothed; `smoothed`: that, with single steps faint behind; `points`."""
    unless: str = ""
    """A metric that, where it was recorded, makes this curve needless."""


@dataclasses.dataclass(frozen=True)
class Chart:
    """What one chart shows, of whatever run."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    log: bool = False
    """Whether it can be switched to a logarithmic axis."""
    zero: bool = False
    """Whether the axis starts at 0."""
    tall: bool = False


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A curve's points: `raw` where single steps are shown faintly, `line` always."""

    curve: Curve
    raw: Series | None
    line: Series


def draw(
    chart: Chart, metrics: dict[str, Series], across: Axis, marks: Html, number_of: int
) -> tuple[Html, list[dict[str, Any]]] | None:
    """The chart, and the values its read-out needs; `None` where the run has nothing to show.

    Args:
      across: the axis of the steps, the same for all charts of a page.
      marks: what happened at which step, as `mark` draws it.
      number_of: tells this chart from the page's others.
    """
    drawn = [_drawn(curve, metrics) for curve in chart.curves if _wanted(curve, metrics)]
    if not any(each.line.values.any() for each in drawn):
        return None
    height = TALL if chart.tall else HEIGHT
    axis = _axis(chart, drawn)
    layers = [_layer(axis, across, drawn, height, "even")]
    switch: list[Html] = []
    if chart.log and _lowest(drawn) > 0:
        layers.append(_layer(_log_axis(axis, drawn), across, drawn, height, "log"))
        name = f"log-{number_of}"
        switch = [
            tag("input", type="checkbox", id=name, class_="switch"),
            tag("label", "log", for_=name, title="Logarithmic axis"),
        ]
    frame = tag("div", *layers, marks, _steps(across), tag("i", class_="cursor"), class_="frame")
    figure = tag(
        "figure",
        tag("figcaption", tag("h3", chart.title), " ", tag("span", chart.unit)),
        *switch,
        tag("p", _note(axis, drawn), class_="readout"),
        frame,
        class_="chart tall" if chart.tall else "chart",
        style=f"--height:{height}px",
    )
    return figure, [values for each in drawn for values in _values(each)]


def mark(step: float, across: Axis, kind: str, text: str) -> Html:
    """An upright line at a step, in a style of its kind."""
    left = 100 * float(across.place(np.array(step)))
    return tag("i", class_=f"mark {kind}", style=f"left:{left:.2f}%", title=text)


def _wanted(curve: Curve, metrics: dict[str, Series]) -> bool:
    return curve.metric in metrics and curve.unless not in metrics


def _drawn(curve: Curve, metrics: dict[str, Series]) -> Drawn:
    series = metrics[curve.metric]
    if curve.kind not in ("mean", "smoothed"):
        return Drawn(curve, None, decimate(series))
    skipped = metrics.get("skipped_step")
    left_out = None
    if skipped is not None:
        left_out = np.isin(series.steps, skipped.steps[skipped.values > 0])
    line = smooth(series, left_out)
    raw = None if line is series or curve.kind == "mean" else decimate(series)
    return Drawn(curve, raw, thin(line))


def _lowest(drawn: Sequence[Drawn]) -> float:
    return min(float((each.raw or each.line).values.min()) for each in drawn)


def _axis(chart: Chart, drawn: Sequence[Drawn]) -> Axis:
    """A frame for what a run is judged by.

    A first fall from far above and spikes of single steps may leave it, and would flatten the
    rest; what lasts never does, so that a run that diverges is seen to.
    """
    lows, highs = [], []
    for each in drawn:
        line, raw = each.line, (each.raw or each.line).values
        begun = line.steps >= line.steps[0] + 0.05 * (line.steps[-1] - line.steps[0])
        usual = [] if each.curve.kind == "points" else np.quantile(raw, (0.005, 0.98)).tolist()
        lasting = line.values[begun].tolist()
        lows.append(min([*usual, *lasting]))
        highs.append(max([*usual, *lasting]))
    axis = Axis.around(0.0 if chart.zero else min(lows), max(highs))
    return dataclasses.replace(axis, low=0.0) if chart.zero else axis


def _log_axis(axis: Axis, drawn: Sequence[Drawn]) -> Axis:
    """The frame's logarithm; there is room for all of what is low or high."""
    highest = max(float((each.raw or each.line).values.max()) for each in drawn)
    return Axis.around(_lowest(drawn), max(axis.high, highest), log=True)


def _note(axis: Axis, drawn: Sequence[Drawn]) -> str:
    """What a reader must know of a chart that is not pointed at."""
    faint = ["mean; single steps faint"] if any(each.raw for each in drawn) else []
    peaks = []
    for each in drawn:
        steps, values = each.raw or each.line
        top = int(values.argmax())
        peaks.append((float(values[top]), float(steps[top])))
    highest, step = max(peaks)
    above = [f"up to {number(highest)} at step {step:,.0f}"] if highest > axis.high else []
    return "; ".join([*faint, *above])


def _layer(axis: Axis, across: Axis, drawn: Sequence[Drawn], height: int, kind: str) -> Html:
    ticks = axis.ticks(7 if height > HEIGHT else 5)
    tops = 100 * (1 - axis.place(np.array(ticks)))
    lines = [
        tag("i", tag("b", label), class_="tick", style=f"top:{top:.2f}%")
        for label, top in zip(tick_labels(ticks), tops, strict=True)
    ]
    paths = [path for each in drawn for path in _paths(each, axis, across)]
    svg = tag(
        "svg",
        *paths,
        viewBox=f"0 0 {_GRID} {_GRID}",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    return tag("div", *lines, svg, *_ends(drawn, axis, height), class_=f"layer {kind}")


def _paths(each: Drawn, axis: Axis, across: Axis) -> list[Html]:
    color, paths = f"c{each.curve.color}", []
    if each.raw:
        paths.append(tag("path", d=_path(each.raw, axis, across), class_=f"{color} raw"))
    points = each.curve.kind == "points"
    shape = f"{color} thin" if points else color
    paths.append(tag("path", d=_path(each.line, axis, across), class_=shape))
    if len(each.line.steps) == 1 or (points and len(each.line.steps) <= _DOTS):
        dots = _path(each.line, axis, across, "h0M")
        paths.append(tag("path", d=f"{dots}h0", class_=f"{color} dots"))
    return paths


def _path(series: Series, axis: Axis, across: Axis, between: str = "L") -> str:
    x = np.rint(_GRID * across.place(series.steps)).astype(int).tolist()
    y = np.rint(_GRID * (1 - axis.place(series.values))).astype(int).tolist()
    return "M" + between.join(f"{a} {b}" for a, b in zip(x, y, strict=True))


def _ends(drawn: Sequence[Drawn], axis: Axis, height: int) -> list[Html]:
    """Each curve's name and last value beside its end, moved apart where they would overlap."""
    values = [float(each.line.values[-1]) for each in drawn]
    room = height - _LABEL / 2  # so that none reaches the steps below the frame
    wanted = np.minimum(room, height * (1 - np.clip(axis.place(np.array(values)), 0, 1)))
    order = np.argsort(wanted, kind="stable")
    places = wanted[order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + _LABEL)
    places = np.minimum(places, room - _LABEL * np.arange(len(places))[::-1])
    ends = []
    for index, top in zip(order, places, strict=True):
        curve, value = drawn[index].curve, tag("b", number(values[index]))
        words = [value, tag("span", curve.name)] if curve.name else [value]
        ends.append(tag("div", *words, class_=f"end c{curve.color}", style=f"top:{top:.0f}px"))
    return ends


def _steps(across: Axis) -> Html:
    ticks = across.ticks(5, whole=True)
    lefts = 100 * across.place(np.array(ticks))
    return join(
        tag("span", label, class_="x", style=f"left:{left:.2f}%")
        for label, left in zip(tick_labels(ticks), lefts, strict=True)
    )


def _values(each: Drawn) -> list[dict[str, Any]]:
    """The points as JSON values, for the read-out: single steps, then their mean."""
    parts = [(each.raw, False), (each.line, True)] if each.raw else [(each.line, False)]
    return [
        {
            "name": each.curve.name,
            "mean": mean,
            "x": series.steps.astype(int).tolist(),
            "y": [float(f"{value:.4g}") for value in series.values.tolist()],
        }
        for series, mean in parts
    ]
