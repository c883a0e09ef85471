"""Plans as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from gptj.plan.compiled import Exchange
from gptj.plan.job import mesh_words
from gptj.plan.measure import Measured
from gptj.plan.plan import Plan, Saving
from gptj.plan.search import Candidate
from gptj.plan.serve import ServePlan
from gptj.report.scale import duration, number, size, with_unit
from gptj.train.progress import human

WIDTH = 40  # characters of a full bar
SHOWN = 12  # candidates of a search


def headline(plan: Plan) -> str:
    """What is planned, in two lines."""
    job, place = plan.job, plan.job.place
    chips = f", {place.chips} chips" if place.chips != place.devices else ""
    return (
        f"{human(plan.parameters)} parameters on {place.name}: {place.devices} x "
        f"{place.accelerator.kind}{chips}, mesh {mesh_words(job.mesh)}\n"
        f"{job.batch} {job.unit} of {job.seq} tokens ({human(job.tokens)}) a step, "
        f"{job.accumulate} x {job.rows} a device; {computing(plan)}"
    )


def computing(plan: Plan) -> str:
    """How a step computes, and what learns."""
    compute, attention = plan.job.compute, plan.found.attention
    by = f"attention by {attention}, " if attention else ""
    return f"{compute.dtype}, remat {compute.remat}, {by}{learning(plan)}"


def learning(plan: Plan) -> str:
    """What learns, and how."""
    lora, optimizer = plan.job.compute.lora, plan.job.optimizer
    how = optimizer.kind + (" in bfloat16" if optimizer.moments == "bfloat16" else "")
    if lora.rank is None:
        return how
    base = lora.quantize or plan.job.compute.dtype
    return f"{how}, {human(plan.trained)} in adapters of rank {lora.rank} beside {base} weights"


def verdict(plan: Plan) -> str:
    """Whether it fits, and by how much or not."""
    needed, available = plan.memory.needed, plan.memory.available
    if plan.fits:
        return f"it fits: {size(needed)} of {size(available)} a device"
    over = f"it does not fit: it needs {size(needed)} of {size(available)} a device"
    return f"{over}, {size(needed - available)} too much"


def how(plan: Plan) -> str:
    """Where the figures come from."""
    if plan.refusal:
        return "refused by the hardware's compiler, the rest by formula"
    if not plan.is_compiled:
        return plan.found.versions
    return f"compiled in {plan.found.seconds:.0f} s by {plan.found.versions}"


def show(plan: Plan, console: Console, tokens: float | None, price: float | None) -> None:
    """A plan for training."""
    console.print(headline(plan), highlight=False)
    console.print(f"{how(plan)}; [bold]{verdict(plan)}[/]\n", highlight=False)
    _bars("memory a device", plan.memory.kinds(), max(plan.memory.needed, plan.memory.available),
          console)  # fmt: skip
    _bars("activations kept, by remat", plan.activations, None, console)
    if not plan.fits:
        console.print(
            "times below are as if it did. To make it fit: split more (tensor, fsdp), recompute "
            "more (--remat block), or look for what does (--search)\n",
            highlight=False,
        )
    _exchanges(plan.found.exchanges, console)
    _times(plan, console)
    if tokens:
        run = plan.run(tokens, price)
        money = f", {run['cost']:,.0f} at {price:g} a chip-hour" if price else ""
        console.print(
            f"{human(tokens)} tokens: {run['days']:.3g} days, {run['device_hours']:,.0f} "
            f"device-hours ({run['chip_hours']:,.0f} chip-hours){money}",
            highlight=False,
        )


def _bars(title: str, parts: dict[str, float], whole: float | None, console: Console) -> None:
    table = Table(title, "", "", box=None, title_justify="left")
    table.columns[1].justify = "right"
    whole = whole or max(parts.values()) or 1
    for name, value in parts.items():
        table.add_row(f"  {name}", size(value), "█" * round(WIDTH * value / whole))
    console.print(table, "")


def grouped(exchanges: Sequence[Exchange]) -> list[Exchange]:
    """Those of a kind, over the same axes and as large, as one; the longest first."""
    found: dict[tuple[object, ...], Exchange] = {}
    for each in exchanges:
        key = (each.kind, each.axes, each.bytes, each.is_hidden)
        before = found.get(key)
        times = each.times + (before.times if before else 0)
        seconds = each.seconds + (before.seconds if before else 0)
        found[key] = Exchange(each.kind, each.axes, each.devices, each.bytes, times, seconds,
                              each.is_hidden, each.arrays)  # fmt: skip
    return sorted(found.values(), key=lambda each: -each.seconds)


def _exchanges(exchanges: Sequence[Exchange], console: Console) -> None:
    rows = grouped(exchanges)
    if not rows:
        return
    table = Table("collectives in a step", "over", "devices", "bytes", "times", "in all", "seconds",
                  "", box=None)  # fmt: skip
    for column in table.columns[2:7]:
        column.justify = "right"
    whole = sum(each.seconds for each in rows)
    for each in [each for each in rows if each.seconds >= whole / 200]:
        table.add_row(
            f"  {each.kind}", "+".join(each.axes), str(each.devices), size(each.bytes),
            f"{each.times:,}", size(each.bytes * each.times), f"{each.seconds:.3g}",
            "hidden" if each.is_hidden else "",
        )  # fmt: skip
    few = [each for each in rows if each.seconds < whole / 200]
    if few:
        total = sum(each.bytes * each.times for each in few)
        table.add_row("  smaller ones", "", "", "", f"{sum(x.times for x in few):,}", size(total),
                      f"{sum(x.seconds for x in few):.3g}", "")  # fmt: skip
    console.print(table, "")


def _times(plan: Plan, console: Console) -> None:
    found, used = plan.times, plan.used
    table = Table("seconds of a step, at best", "", box=None)
    for name in ("compute", "memory", "interconnect"):
        table.add_row(f"  {name}", f"{getattr(found, name):.3g}",
                      "<- the bound" if name == found.bound else "")  # fmt: skip
    console.print(table, "")
    console.print(
        f"predicted: {duration(found.predicted)} a step, {number(plan.tokens_per_second)} "
        f"tokens/s, with products at {100 * found.share:.1f} % of the peak ({found.source}) and "
        f"{duration(found.exposed)} of waiting for others",
        highlight=False,
    )
    peak = plan.job.place.devices * plan.job.place.accelerator.peak_flops
    table = Table(f"of {with_unit(peak, 'FLOP/s')}", "MFU", "HFU", box=None)
    for name, mfu, hfu in (
        ("as gptj train measures", used.gptj_mfu, used.gptj_hfu),
        ("as in the PaLM paper", used.palm_mfu, used.palm_hfu),
        ("as in GPT-J's article", used.article_mfu, used.article_hfu),
    ):
        table.add_row(f"  {name}", f"{100 * mfu:.1f} %", f"{100 * hfu:.1f} %")
    console.print(table, "")


def show_measured(plan: Plan, found: Measured, console: Console) -> None:
    """What was predicted beside what was measured."""
    table = Table("", "predicted", "measured", "", box=None)
    ours, theirs = plan.tokens_per_second, plan.job.tokens / found.seconds
    rows = [
        ("s a step", plan.times.predicted, found.seconds, number),
        ("tokens/s", ours, theirs, number),
        ("memory a device", plan.memory.needed, found.memory, size),
    ]
    for name, predicted, measured, words in rows if found.memory else rows[:2]:
        apart = f"{100 * (predicted / measured - 1):+.0f} %"
        table.add_row(f"  {name}", words(predicted), words(measured), apart)
    console.print(f"on {found.devices}:", table, "", highlight=False)


def show_saving(found: Saving, console: Console) -> None:
    """What the parallel block saves."""
    console.print(
        f"over tensor a device all-reduces {size(found.parallel)} of activations a step in "
        f"{found.parallel_times:,} goes; with the block made sequential "
        f"{size(found.sequential)} in {found.sequential_times:,}. The parallel block saves "
        f"{size(found.sequential - found.parallel)} and {duration(max(0.0, found.seconds))}.",
        highlight=False,
    )


def show_search(found: Sequence[Candidate], console: Console) -> None:
    """The ranking."""
    table = Table("", "mesh", "remat", "rows", "memory", "s/step", "tokens/s", "", box=None)
    for column in table.columns[3:7]:
        column.justify = "right"
    for place, each in enumerate(found[:SHOWN], 1):
        plan, job = each.plan, each.plan.job
        table.add_row(
            str(place), mesh_words(job.mesh), job.compute.remat, f"{job.rows} x {job.accumulate}",
            size(plan.memory.needed), f"{plan.times.predicted:.3g}",
            number(plan.tokens_per_second),
            each.reason or f"the best{'' if plan.is_compiled else ' by formula'}",
        )  # fmt: skip
    console.print(table, "")
    rest = found[SHOWN:]
    if rest:
        large = sum(not each.plan.fits for each in rest)
        console.print(f"and {len(rest)} more, of which {large} do not fit; all are in --json",
                      highlight=False)  # fmt: skip


def show_serve(plan: ServePlan, console: Console) -> None:
    """A plan for serving."""
    job = plan.job
    few = job.quantize or job.dtype
    console.print(
        f"serving {human(plan.parameters)} parameters ({few}) on {job.place.name}: "
        f"{job.place.devices} x {job.place.accelerator.kind}, mesh {mesh_words(job.mesh)}; "
        f"{job.slots} slots of {job.positions} tokens, cache in "
        f"{job.dtype if job.kv_cache == 'model' else job.kv_cache}; {plan.versions}",
        highlight=False,
    )
    word = "fits" if plan.fits else "does not fit"
    console.print(f"[bold]it {word}: {size(plan.needed)} of {size(plan.available)} a device[/]\n",
                  highlight=False)  # fmt: skip
    _bars("memory a device", plan.parts, max(plan.needed, plan.available), console)
    table = Table("slots", "ms a token", "tokens/s", "bound", "", box=None)
    for each in plan.rates:
        table.add_row(str(each.slots), f"{1e3 * each.seconds:.3g}",
                      number(each.tokens_per_second), each.bound,
                      "" if each.fits else "does not fit")  # fmt: skip
    console.print("a decode step at the hardware's best, every slot at its longest:", table, "",
                  highlight=False)  # fmt: skip
    console.print(
        f"at {job.positions} tokens {plan.most_slots} slots fit; a slot alone could have "
        f"{plan.longest:,} (the model knows {job.model.context:,})",
        highlight=False,
    )
