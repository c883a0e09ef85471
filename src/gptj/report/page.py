"""The page: what it is made of, in order, and how it becomes one file that needs no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from gptj.errors import UserError
from gptj.report.chart import Chart, Curve, draw, mark
from gptj.report.curves import Series
from gptj.report.html import HERE, Html, document, join, tag
from gptj.report.record import Record
from gptj.report.scale import Axis, duration, number, size, with_unit
from gptj.report.sections import configuration, events, goodput, samples, section, versions
from gptj.train.metrics import METRICS

NAME = "report.html"

CHARTS = (
    Chart(
        "Loss",
        "nats a token",
        (
            Curve("loss", "training", 1, "smoothed"),
            Curve("last_loss", "last position", 3, "mean"),
            Curve("heldout_loss", "held-out", 2, "points"),
        ),
        log=True,
        tall=True,
    ),
    Chart("Learning rate", "", (Curve("lr"),)),
    Chart(
        "Gradient norm",
        "",
        (
            Curve("grad_norm", "batch", 1, "smoothed"),
            Curve("grad_norm_micro", "micro", 2, "smoothed"),
        ),
        log=True,
    ),
    Chart("Gradient noise scale", "rows", (Curve("noise_scale", "", 3, "smoothed"),), True),
    Chart("z-loss", "nats a token", (Curve("z_loss", "", 3, "smoothed"),), True),
    Chart(
        "Throughput",
        "tokens a second",
        (Curve("tokens_per_second", "", 4, "smoothed"),),
        zero=True,
    ),
    Chart(
        "Time of a step",
        "seconds",
        (
            Curve("step_seconds", "", 4, "smoothed", unless="step_seconds_p50"),
            Curve("step_seconds_p50", "median", 4),
            Curve("step_seconds_p95", "95th pct.", 2),
        ),
        zero=True,
    ),
    Chart(
        "FLOP utilization",
        "%",
        (Curve("mfu", "model", 1, "smoothed"), Curve("hfu", "hardware", 3, "smoothed")),
        zero=True,
    ),
    Chart("Memory in use", "bytes", (Curve("memory_bytes", "", 3),), zero=True),
)
_COLUMNS = 6  # of cards; more are laid out in two rows
# Metrics of one unit, and what to multiply them with for a unit in which they are not too small.
_UNITS: dict[str, tuple[tuple[str, ...], tuple[tuple[float, str], ...]]] = {
    "seconds": (
        ("step_seconds", "step_seconds_p50", "step_seconds_p95"),
        ((1.0, "seconds"), (1e3, "milliseconds")),
    ),
    "%": (("mfu", "hfu"), ((100.0, "% of the peak"),)),
    "bytes": (
        ("memory_bytes",),
        ((2.0**-30, "GiB a device"), (2.0**-20, "MiB a device")),
    ),
}
_MARKS = {"resume": "resumed", "rewind": "rewound", "skip": "update skipped"}


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Write a run's report: one HTML page that needs no other file and no network.

    It shows the curves, the throughput, where the time went, samples over time, what happened,
    and the run's configuration and versions. A run that is under way can be reported on, too.
    """

    run: tyro.conf.Positional[Path]
    """Folder of a `gptj train` run."""
    out: Path | None = None
    """The page to write. Default: report.html in the run's folder."""


def report(run: Path, out: Path | None = None) -> Path:
    """Write the report of the run in the folder `run` to `out`, or to its `report.html`.

    Returns:
      The page's path.

    Raises:
      UserError: the folder holds no metrics, a file of it is damaged, or `out` cannot be written.
    """
    out = run / NAME if out is None else out
    text = page(Record.read(run))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}): choose another --out"
        ) from error
    return out


def page(record: Record) -> str:
    """The whole page as HTML."""
    curves, data = _curves(record)
    parts = [
        _header(record),
        _cards(record),
        section("Curves", _key(record), tag("div", *curves, class_="charts")),
        *(part(record) for part in (goodput, samples, events, configuration, versions)),
        tag("footer", f"Written by gptj from {record.path.resolve()}"),
    ]
    title = f"{record.path.resolve().name}: training report"
    script = (HERE / "script.js").read_text(encoding="utf-8")
    return document(title, parts, "data", data, script=script)


def _curves(record: Record) -> tuple[list[Html], dict[str, Any]]:
    """The charts, and what the script must know to read them out."""
    first, last = float(record.steps[0]), float(record.steps[-1])
    low = 0.0 if first <= 0.2 * last else first
    across = Axis(low, last if last > low else low + 1)
    metrics, units = _in_units(record.metrics)
    happened = _happened(record)
    lines = {(kind, round(1000 * float(across.place(np.array(step))))): step
             for step, kind, _ in happened}  # fmt: skip
    marks = join(mark(step, across, kind, _MARKS[kind]) for (kind, _), step in lines.items())
    charts = [dataclasses.replace(c, unit=units.get(c.unit, c.unit)) for c in CHARTS]
    drawn = [draw(chart, metrics, across, marks, i) for i, chart in enumerate(charts)]
    shown = [each for each in drawn if each is not None]
    data = {
        "steps": [across.low, across.high],
        "marks": [[step, text] for step, _, text in happened][:1000],
        "charts": [values for _, values in shown],
    }
    return [figure for figure, _ in shown], data


def _in_units(metrics: dict[str, Series]) -> tuple[dict[str, Series], dict[str, str]]:
    """The metrics in units for people, and what those units are called."""
    metrics, names = dict(metrics), {}
    for unit, (members, scales) in _UNITS.items():
        held = [name for name in members if name in metrics]
        usual = max((float(np.median(metrics[name].values)) for name in held), default=1.0)
        suited = [(factor, name) for factor, name in scales if usual * factor >= 0.5]
        factor, names[unit] = suited[0] if suited else scales[-1]
        for name in held:
            metrics[name] = metrics[name]._replace(values=metrics[name].values * factor)
    return metrics, names


def _happened(record: Record) -> list[tuple[float, str, str]]:
    """Steps at which the run resumed, rewound or skipped: step, kind, words."""
    found = {
        (float(event["step"]), event["event"]): _MARKS[event["event"]]
        for event in record.events
        if event["event"] in _MARKS
    }
    if (skipped := record.metrics.get("skipped_step")) is not None:
        steps = skipped.steps[skipped.values > 0].tolist()
        found |= {(step, "skip"): _MARKS["skip"] for step in steps}
    return sorted((step, kind, text) for (step, kind), text in found.items())


def _key(record: Record) -> Html:
    """What the upright lines mean, those that there are."""
    kinds = {kind for _, kind, _ in _happened(record)}
    words = [
        tag("span", tag("i", class_=f"mark {kind}"), text)
        for kind, text in _MARKS.items()
        if kind in kinds
    ]
    return tag("p", *words, class_="key") if words else Html("")


def _header(record: Record) -> Html:
    total, state = record.total, record.state
    step = f"step {record.step:,}" + (f" of {total:,}" if total else "")
    parts = [step]
    for name, words in (("loss", "loss {}"), ("heldout_loss", "held-out {}")):
        if (value := record.last(name)) is not None:
            parts.append(words.format(number(value)))
    if record.tokens is not None:
        parts.append(f"{number(record.tokens)} tokens")
    if (rate := _usual(record, "tokens_per_second")) is not None:
        parts.append(f"{number(rate)} tokens/s")
    stands = [tag("strong", state, class_=state.split()[0])] if state else []
    of = [f"{number(record.parameters)} parameters"] if record.parameters else []
    of += [str(fact) for name in ("devices", "mesh") if (fact := record.fact(name))]
    written = (record.path / METRICS).stat().st_mtime
    of.append(f"last step {datetime.fromtimestamp(written, UTC):%Y-%m-%d %H:%M} UTC")
    return tag(
        "header",
        tag("h1", record.path.resolve().name),
        tag("p", *stands, *_spans(parts), class_="status"),
        tag("p", *_spans(of), class_="of"),
    )


def _spans(parts: Sequence[str]) -> list[Html]:
    return [tag("span", part) for part in parts]


def _usual(record: Record, name: str) -> float | None:
    """The median of the last hundred values of a metric."""
    if name not in record.metrics:
        return None
    return float(np.median(record.metrics[name].values[-100:]))


def _cards(record: Record) -> Html:
    """The run's key figures, those that there are."""
    cards = [
        tag("div", tag("h3", name), tag("b", value), tag("small", aside or ""), class_="card")
        for name, value, aside in _figures(record)
        if value is not None
    ]
    columns = len(cards) if len(cards) <= _COLUMNS else -(-len(cards) // 2)
    return tag("div", *cards, class_="cards", style=f"--columns:{columns}")


def _figures(record: Record) -> list[tuple[str, str | None, str | None]]:
    """Name, value, and what puts the value in proportion."""

    def last(metric: str, words: str = "{}") -> str | None:
        return _in_words(record.last(metric), lambda value: words.format(number(value)))

    def usual(metric: str, words: str = "{}", factor: float = 1) -> str | None:
        return _in_words(_usual(record, metric), lambda x: words.format(number(x * factor)))

    loss = record.metrics.get("loss")
    recent = None if loss is None else loss.values[-100:]
    mean = None if recent is None else f"last {len(recent)} steps: {number(float(recent.mean()))}"
    flops = _in_words(_usual(record, "flops_per_second"), lambda x: with_unit(x, "FLOP/s"))
    whole = sum(record.seconds.values())
    share = f"{number(100 * record.seconds.get('step', 0.0) / whole)} %" if whole else None
    skipped = record.last("skipped")
    return [
        ("Loss", last("loss"), mean),
        ("Held-out loss", last("heldout_loss"), last("heldout_perplexity", "perplexity {}")),
        ("Bits per byte", last("heldout_bits_per_byte"), "held-out text"),
        ("Tokens", _in_words(record.tokens, number), f"in {record.step:,} steps"),
        ("Tokens a second", usual("tokens_per_second"), flops),
        ("MFU", usual("mfu", "{} %", 100), usual("hfu", "HFU {} %", 100)),
        ("Goodput", share, f"of {duration(whole)}"),
        ("Skipped updates", f"{skipped:,.0f}" if skipped else None, "for a spike of the loss"),
        ("Memory", _in_words(record.last("memory_bytes"), size), "in use, a device"),
    ]


def _in_words(value: float | None, words: Callable[[float], str]) -> str | None:
    return None if value is None else words(value)
