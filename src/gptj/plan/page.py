"""A plan as one HTML page, in the dress of the report on a run."""

from __future__ import annotations

from typing import Any

from gptj.plan.job import mesh_words
from gptj.plan.plan import Plan
from gptj.plan.serve import ServePlan
from gptj.plan.terminal import computing, grouped, how, verdict
from gptj.report.html import Html, document, table, tag
from gptj.report.scale import duration, number, size
from gptj.report.sections import section
from gptj.train.progress import human

_COLOURS = ("t-step", "t-compile", "t-data", "t-evaluate", "t-checkpoint", "t-lost")
_STYLE = """
.memory { margin-bottom: 16px; } .memory .bar { background: var(--grid); }
.memory table i { display: inline-block; width: 10px; height: 10px; margin-right: 7px; }
table.plan { width: 100%; } table.kept td:last-child { width: 80%; }
table.plan td, table.plan th { padding: 4px 10px 4px 0;
  text-align: left; border-bottom: 1px solid var(--rule); vertical-align: top; }
"""


_ASKED = {
    "run": "The whole run",
    "sequential": "With a sequential block: bytes and collectives over tensor",
    "measured": "Measured here",
}
"""What `--json` holds where it was asked for, and its title."""


def page(found: dict[str, Any], plans: list[Plan] | list[ServePlan]) -> str:
    """The page: of the first plan everything, of more than one also the ranking.

    Args:
      found: what `--json` writes, which the page carries too.
    """
    first = plans[0]
    parts = _serving(first) if isinstance(first, ServePlan) else _training(first)
    ranked = [plan for plan in plans if isinstance(plan, Plan)]
    if len(ranked) > 1:
        reasons = [each["reason"] for each in found["ranked"]]
        parts.insert(1, _ranking(ranked, reasons))
    of_first = found["ranked"][0] if "ranked" in found else found
    parts += [_values(title, of_first[name]) for name, title in _ASKED.items() if name in of_first]
    return document(f"Plan for {first.job.place.name}", parts, "plan", found, style=_STYLE)


def _header(place: str, verdict: str, fits: bool, words: list[str]) -> Html:
    state = tag("strong", verdict, class_="finished" if fits else "stopped")
    return tag(
        "header",
        tag("h1", f"Plan for {place}"),
        tag("p", state, class_="status"),
        tag("p", *(tag("span", each) for each in words), class_="of"),
    )


def _cards(figures: list[tuple[str, str, str]]) -> Html:
    cards = [
        tag("div", tag("h3", name), tag("b", value), tag("small", aside), class_="card")
        for name, value, aside in figures
    ]
    return tag("div", *cards, class_="cards", style=f"--columns:{len(cards)}")


def _training(plan: Plan) -> list[Html]:
    job, found, used = plan.job, plan.times, plan.used
    words = [
        f"{human(plan.parameters)} parameters", f"mesh {mesh_words(job.mesh)}",
        f"{job.batch} {job.unit} of {job.seq} tokens, {job.accumulate} x {job.rows} a device",
        computing(plan), how(plan),
    ]  # fmt: skip
    cards = [
        ("Memory", size(plan.memory.needed), f"of {size(plan.memory.available)} a device"),
        ("Step", duration(found.predicted), f"bound: {found.bound}"),
        ("Tokens a second", number(plan.tokens_per_second), f"{job.place.devices} devices"),
        ("MFU", f"{100 * used.gptj_mfu:.1f} %", f"HFU {100 * used.gptj_hfu:.1f} %"),
        ("PaLM's MFU", f"{100 * used.palm_mfu:.1f} %", f"HFU {100 * used.palm_hfu:.1f} %"),
        ("The article's", f"{100 * used.article_mfu:.1f} %", f"HFU {100 * used.article_hfu:.1f} %"),
    ]
    most = max(plan.activations.values())
    kept = [(name, size(value), _line(value / most)) for name, value in plan.activations.items()]
    return [
        _header(job.place.name, verdict(plan), plan.fits, words),
        _cards(cards),
        section("Memory of a device", _stack(plan.memory.kinds(), plan.memory.available)),
        section("Activations kept, by remat", table((), kept, "plan kept")),
        section("Collectives in a step", _exchanges(plan)),
        section("Seconds of a step", _seconds(plan)),
    ]


def _line(share: float) -> Html:
    return tag("div", tag("i", class_="t-data", style=f"width:{100 * share:.1f}%"), class_="bar")


def _stack(parts: dict[str, float], available: float) -> Html:
    whole = max(available, sum(parts.values()))
    named = list(zip(parts.items(), _COLOURS, strict=False))
    bar = [
        tag("i", class_=colour, style=f"width:{100 * value / whole:.3f}%", title=name)
        for (name, value), colour in named
    ]
    rows = [
        (
            tag("span", tag("i", class_=colour), name),
            size(value),
            f"{100 * value / available:.1f} %",
        )
        for (name, value), colour in named
    ]
    return tag("div", tag("div", *bar, class_="bar"), table((), rows, "time"), class_="memory")


def _exchanges(plan: Plan) -> Html:
    head = ("kind", "over", "devices", "bytes", "times", "in all", "seconds", "what")
    rows = [
        (
            each.kind + (" (hidden)" if each.is_hidden else ""), "+".join(each.axes),
            str(each.devices), size(each.bytes), f"{each.times:,}", size(each.bytes * each.times),
            f"{each.seconds:.3g}", ", ".join(each.arrays[:4]) + ("…" if each.arrays[4:] else ""),
        )
        for each in grouped(plan.found.exchanges)
    ]  # fmt: skip
    return table(head, rows, "plan") if rows else tag("p", "None.", class_="lead")


def _seconds(plan: Plan) -> Html:
    found = plan.times
    rows = [(name, f"{getattr(found, name):.3g}", "at best")
            for name in ("compute", "memory", "interconnect")]  # fmt: skip
    reached = f"products at {100 * found.share:.1f} % of the peak ({found.source})"
    rows.append(("predicted", f"{found.predicted:.3g}",
                 f"{reached}, and {duration(found.exposed)} of waiting for others"))  # fmt: skip
    return table((), rows, "plan")


def _values(title: str, found: dict[str, Any]) -> Html:
    rows = [
        (name.replace("_", " "), value if isinstance(value, str) else number(value))
        for name, value in found.items()
    ]
    return section(title, table((), rows, "time"))


def _ranking(plans: list[Plan], reasons: list[str]) -> Html:
    head = ("mesh", "remat", "rows", "memory", "s a step", "tokens/s", "")
    rows = [
        (
            mesh_words(plan.job.mesh), plan.job.compute.remat,
            f"{plan.job.rows} x {plan.job.accumulate}", size(plan.memory.needed),
            f"{plan.times.predicted:.3g}", number(plan.tokens_per_second), reason or "the best",
        )
        for plan, reason in zip(plans, reasons, strict=False)
    ]  # fmt: skip
    return section("What was tried", table(head, rows, "plan"))


def _serving(plan: ServePlan) -> list[Html]:
    job = plan.job
    word = "it fits" if plan.fits else "it does not fit"
    words = [
        f"{human(plan.parameters)} parameters in {job.quantize or job.dtype}",
        f"mesh {mesh_words(job.mesh)}", f"{job.slots} slots of {job.positions} tokens",
        plan.versions,
    ]  # fmt: skip
    rows = [
        (str(each.slots), f"{1e3 * each.seconds:.3g}", number(each.tokens_per_second), each.bound,
         "" if each.fits else "does not fit")
        for each in plan.rates
    ]  # fmt: skip
    cards = [
        ("Memory", size(plan.needed), f"of {size(plan.available)} a device"),
        ("Slots that fit", f"{plan.most_slots:,}", f"of {job.positions} tokens"),
        ("Longest", f"{plan.longest:,}", "tokens of a slot alone"),
    ]
    return [
        _header(job.place.name, f"{word}: {size(plan.needed)} of {size(plan.available)} a device",
                plan.fits, words),
        _cards(cards),
        section("Memory of a device", _stack(plan.parts, plan.available)),
        section("A decode step at best, every slot at its longest",
                table(("slots", "ms a token", "tokens/s", "bound", ""), rows, "plan")),
    ]  # fmt: skip
