"""The parts of the page below its curves: where time went, samples, events, configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from gptj.report.html import Html, join, table, tag
from gptj.report.record import GOODPUT, Record
from gptj.report.scale import duration, number

_SAMPLED_STEPS = 40  # of more, the first, the last and some evenly between are shown
_CHARACTERS = 300_000  # of all samples together
_LONGEST = 4000  # characters of one sample
_EVENTS = 200  # newest, of more

_HASH = re.compile("[0-9a-f]{32,}")


def section(title: str, *content: Html) -> Html:
    """A part of the page under its heading."""
    return tag("section", tag("h2", title), *content)


def goodput(record: Record) -> Html:
    """What the run's time went into, as one bar and in numbers."""
    seconds = record.seconds
    whole = sum(seconds.values())
    if not whole:
        return Html("")
    shares = {name: 100 * value / whole for name, value in seconds.items()}
    bar = [
        tag("i", class_=f"t-{name}", style=f"width:{share:.3f}%", title=GOODPUT[name])
        for name, share in shares.items()
    ]
    rows = [
        (
            tag("span", tag("i", class_=f"t-{name}"), GOODPUT[name]),
            duration(seconds[name]),
            f"{share:.1f} %" if share >= 0.05 else "< 0.1 %",
        )
        for name, share in shares.items()
    ]
    went = f"{shares.get('step', 0.0):.1f} % of {duration(whole)}"
    lead = f"{went}, over all restarts, went into training steps."
    return section(
        "Goodput",
        tag("p", lead, class_="lead"),
        tag("div", *bar, class_="bar"),
        table((), rows, "time"),
    )


def samples(record: Record) -> Html:
    """What the model wrote as it learnt, latest first; each step can be folded."""
    by_step: dict[float, dict[str, dict[str, Any]]] = {}
    for row in sorted(record.samples, key=lambda row: row["step"]):
        # A step that was done again has sampled again, after the same prompts.
        by_step.setdefault(row["step"], {})[_split(row)[0]] = row
    if not by_step:
        return Html("")
    count = min(_SAMPLED_STEPS, len(by_step))
    chosen = np.unique(np.linspace(0, len(by_step) - 1, count).round().astype(int))
    steps = list(by_step)
    shown = [(steps[index], list(by_step[steps[index]].values())) for index in chosen[::-1]]
    longest = min(_LONGEST, _CHARACTERS // sum(len(rows) for _, rows in shown))
    folds = [
        tag(
            "details",
            tag("summary", f"step {step:,.0f}", tag("span", _beginning(rows[0]))),
            *(_sample(row, longest) for row in rows),
            open="" if index == 0 else None,
        )
        for index, (step, rows) in enumerate(shown)
    ]
    few = f"{len(shown)} of {len(by_step)} steps with samples." if len(by_step) > count else ""
    return section("Samples", *([tag("p", few, class_="lead")] if few else []), *folds)


def _split(row: Mapping[str, Any]) -> tuple[str, str]:
    """The prompt and what follows it, whether or not the text repeats the prompt."""
    prompt = row.get("prompt")
    prompt = prompt if isinstance(prompt, str) else ""
    return prompt, row["text"].removeprefix(prompt)


def _beginning(row: Mapping[str, Any]) -> str:
    return " ".join("".join(_split(row))[:160].split())


def _sample(row: Mapping[str, Any], longest: int) -> Html:
    prompt, text = _split(row)
    rest = len(text) - longest
    more = [tag("i", f" … {rest:,} more characters")] if rest > 0 else []
    return tag("pre", tag("b", prompt[:longest]), text[:longest], *more, class_="sample")


def events(record: Record) -> Html:
    """What happened, latest first."""
    if not record.events:
        return Html("")
    rows = [
        (_when(event.get("time")), f"{event['step']:,.0f}", event["event"], _told(event, record))
        for event in record.events[: -_EVENTS - 1 : -1]
    ]
    few = f"The latest {len(rows):,} of {len(record.events):,}."
    lead = [tag("p", few, class_="lead")] if len(record.events) > len(rows) else []
    head = ("time (UTC)", "step", "event", "")
    return section("Events", *lead, tag("div", table(head, rows, "events"), class_="scroll"))


def _when(time: object) -> str:
    try:
        return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S}"  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError):
        return ""


def _told(event: Mapping[str, Any], record: Record) -> Html:
    parts = [str(event.get("text", ""))]
    rows = event.get("rows")
    if isinstance(rows, list) and rows:
        named = ", ".join(map(str, rows[:16])) + (", …" if len(rows) > 16 else "")
        command = f"gptj show-rows {record.path} {event['step']:.0f}"
        parts.append(tag("small", f"rows {named}: ", tag("code", command)))
    return join(parts)


def configuration(record: Record) -> Html:
    """What decides the run's weights, a table for each group."""
    groups: dict[str, dict[str, Any]] = {"run": {}}
    for key, value in record.course.items():
        if isinstance(value, dict):
            groups[key] = value
        else:
            groups["run"][key] = value
    if record.parameters:
        groups["model"] = {"parameters": record.parameters} | groups["model"]
    tables = [
        tag("div", tag("h3", name), table((), [(k, _value(v)) for k, v in group.items()], "facts"))
        for name, group in groups.items()
        if group
    ]
    return section("Configuration", tag("div", *tables, class_="groups")) if tables else Html("")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        whole = float(value).is_integer() and abs(value) < 1e15
        return f"{value:,.0f}" if whole else number(value)
    if isinstance(value, str) and _HASH.fullmatch(value):
        return tag("code", value)
    return "none" if value is None else str(value)


def versions(record: Record) -> Html:
    """What the run ran on, and from which step on where a restart changed it."""
    history: dict[str, list[tuple[float, str]]] = {}
    for event in record.events:
        found = event.get("versions")
        known = dict(found) if isinstance(found, dict) else {}
        known |= {name: event[name] for name in ("devices", "hosts", "mesh") if event.get(name)}
        for name, value in known.items():
            past = history.setdefault(str(name), [])
            if not past or past[-1][1] != str(value):
                past.append((event["step"], str(value)))
    if not history:
        return Html("")
    rows = [(name, _changes(past)) for name, past in history.items()]
    return section("Versions", table((), rows, "facts"))


def _changes(past: list[tuple[float, str]]) -> str:
    later = [f" → {value} at step {step:,.0f}" for step, value in past[1:]]
    return past[0][1] + "".join(later)
