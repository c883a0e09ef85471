"""Pictures of the chapter on speed: limits by the project's counting, points as measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from gptj.accelerators import named
from gptj.bench.records import Limits, Work
from gptj.bench.work import weight_bytes
from gptj.config import ModelConfig, preset
from gptj.flops import flops_per_token, forward_flops_per_token, prefill_flops
from gptj.plan.estimate import traffic
from gptj.plan.job import Job
from gptj.plan.place import find
from gptj.plan.serve import ServeJob, position_bytes
from gptj.plot import COLORS, FAINT, INK
from gptj.train.objective import StepConfig
from gptj.train.optimizer import OptimizerConfig

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SIX = preset("gpt-j-6b")
TRAIN, READ, DRAW, FEW = COLORS[1], COLORS[3], COLORS[0], COLORS[2]
AFTER = 272
"""Tokens that a slot has read in the middle of what was measured on the GPU."""


class Point(NamedTuple):
    """A measured program."""

    name: str
    intensity: float
    rate: float
    color: str


def results(name: str) -> dict[str, Any]:
    """What was measured."""
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def step_bytes(model: ModelConfig, rows: int, length: int, remat: Any) -> float:
    """What a training step reads and writes, by the planner's formula."""
    how, step = OptimizerConfig().for_run(1000), StepConfig(dtype="bfloat16", remat=remat)
    return traffic(Job(find("h200"), model, (1, 1, 1), rows, 1, length, how, step))


def of_gpu(cases: dict[str, Any]) -> Iterator[Point]:
    """The H200's points."""
    best = max(cases["train gpt-j-6b"]["tried"], key=lambda each: each["mfu"])
    rows = best["rows"]
    flops = flops_per_token(SIX, 2048) * rows * 2048
    moved = step_bytes(SIX, rows, 2048, best["remat"])
    yield Point("train", flops / moved, flops / best["seconds"], TRAIN)
    flops, read = prefill_flops(SIX, 2048), cases["prefill 2048 2048"]
    yield Point("read 2,048", flops / weight_bytes(SIX, "bfloat16"), flops / read["seconds"], READ)
    for stored, slots, case in drawn(cases):
        flops = slots * forward_flops_per_token(SIX, AFTER)
        name = f"draw, {slots} slot{'s' * (slots > 1)}{', int8' * (stored == 'int8')}"
        color = FEW if stored == "int8" else DRAW
        yield Point(name, flops / case["bytes a step"], flops / case["seconds a step"], color)


def drawn(cases: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The cases of drawing over a cache in the model's own numbers: storage, slots, and figures."""
    for name, found in cases.items():
        if name.startswith("decode") and name.split()[2] == "model":
            for slots, case in found.items():
                if isinstance(case, dict):
                    yield name.split()[1], int(slots.split()[0]), case


def of_cpu(found: dict[str, Any]) -> Iterator[Point]:
    """The points of two CPU cores, the 125m preset."""
    names = {
        ("train", "a step", "bfloat16"): ("train", TRAIN),
        ("prefill", "256 tokens", "bfloat16"): ("read 256", READ),
        ("decode", "1 slot", "bfloat16"): ("draw, 1 slot", DRAW),
        ("decode", "8 slots", "bfloat16"): ("8 slots", DRAW),
        ("decode", "1 slot", "int8"): ("1 slot, int8", FEW),
        ("decode", "8 slots", "int8"): ("8 slots, int8", FEW),
    }
    for (subject, case, stored), (name, color) in names.items():
        figure = next(
            each
            for each in found[subject]["figures"]
            if (each["side"], each["case"]) == (f"gptj {stored}", case)
        )
        work, asked = figure["work"], found[subject]["asked"]
        moved = work["bytes"]
        if subject == "train":
            moved = step_bytes(preset("125m"), asked["batch"], asked["seq"], asked["remat"])
        rate = figure["per_second"] / work["amount"] * work["flops"]
        yield Point(name, work["flops"] / moved, rate, color)


def roofline() -> Figure:
    """Both machines: the least and the most that was measured of their limits, and the points."""
    figure = Figure(figsize=(11.5, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    cases, found = results("gpu.json")["cases"], results("2026-11-27-amd-epyc.json")
    measured = [(cases["limits"]["bytes a second"], cases["limits"]["flops"])]
    maker = named("NVIDIA H200")
    assert maker is not None
    spots = {"draw, 1 slot": (10, -14, "left"), "draw, 1 slot, int8": (10, 4, "left")}
    spots |= {"train": (-12, -6, "right"), "read 2,048": (0, -18, "center")}
    _roof(left, measured, (0.4, 1e4), (8e11, 2e15), "H200, GPT-J-6B")
    x = np.geomspace(0.4, 1e4, 400)
    roof = np.minimum(x * maker.bandwidth, maker.peak_flops)
    left.plot(x, roof, color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)
    left.text(9.5e3, maker.peak_flops * 1.08, "the maker's figures", ha="right", color="#868e96")
    for point in of_gpu(cases):
        _point(left, point, spots.get(point.name, (10, -4, "left")))
    every = [Limits(**found[subject]["limits"]) for subject in ("train", "decode", "prefill")]
    measured = [(each.bandwidth, each.flops["bfloat16"]) for each in every]
    _roof(right, measured, (0.5, 3e3), (1e10, 8e11), "two cores of an EPYC, 125m")
    for point in of_cpu(found):
        spots = {"train": (0, -20, "center"), "read 256": (0, 11, "center")}
        _point(right, point, spots.get(point.name, (10, -4, "left")))
    left.set_ylabel("operations a second")
    return figure


def _roof(axes: Any, measured: Any, across: Any, up: Any, title: str) -> None:
    """The limits as lines, with a band where measurements differ."""
    x = np.geomspace(*across, 400)
    least = np.minimum(x * min(b for b, _ in measured), min(f for _, f in measured))
    most = np.minimum(x * max(b for b, _ in measured), max(f for _, f in measured))
    axes.fill_between(x, least, most, color=FAINT, alpha=0.5, linewidth=0)
    axes.plot(x, most, color=INK, linewidth=1.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*across)
    axes.set_ylim(*up)
    axes.set_xlabel("operations a byte")
    axes.set_title(title, loc="left", color=INK, fontsize=13)


def _point(axes: Any, point: Point, where: tuple[float, float, str]) -> None:
    axes.plot(point.intensity, point.rate, "o", color=point.color, markersize=9)
    axes.annotate(
        point.name, (point.intensity, point.rate), where[:2], textcoords="offset points",
        ha=where[2], color=point.color,
    )  # fmt: skip


def slots() -> Figure:
    """Tokens a second by slots: the H200's limits, and what was measured."""
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    axes = figure.subplots()
    cases = results("gpu.json")["cases"]
    found = cases["limits"]
    limits = Limits("H200", found["bytes a second"], {"bfloat16": found["flops"]})
    maker = named("NVIDIA H200")
    assert maker is not None
    each = position_bytes(ServeJob(find("h200"), SIX, (1, 1, 1), 1, 2048))
    lines = (
        ("int4", AFTER, COLORS[4], "-"),
        ("int8", AFTER, FEW, "-"),
        ("bfloat16", AFTER, DRAW, "-"),
        ("bfloat16", 2048, DRAW, (0, (4, 2))),
    )
    for stored, context, color, style in lines:
        own = weight_bytes(SIX, stored)
        most = (maker.memory - own) / each / context
        counts = np.geomspace(1, min(most, 512), 60)
        rates = []
        for count in counts:
            flops = count * forward_flops_per_token(SIX, context)
            work = Work("tokens", count, flops, own + count * context * each)
            rates.append(count / limits.seconds(work, stored)[0])
        axes.plot(counts, rates, color=color, linestyle=style, linewidth=2)
    axes.text(1.8, 2450, "int4", color=COLORS[4], ha="right")
    axes.text(1.8, 1300, "int8", color=FEW, ha="right")
    axes.text(25, 4750, "bfloat16, after 272 tokens", color=DRAW)
    axes.text(68, 3300, "after 2,048 tokens:\nas many slots as fit", color=DRAW, va="top")
    for stored, count, case in drawn(cases):
        color = FEW if stored == "int8" else DRAW
        axes.plot(count, case["tokens a second"], "o", color=color, markersize=9, clip_on=False)
        said = f"{case['tokens a second']:,.0f}{' in int8' * (stored == 'int8')}"
        above = stored == "int8"
        axes.annotate(
            said, (count, case["tokens a second"]), (9, 2 if above else -10),
            textcoords="offset points", color=color, fontweight="bold",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [2**n for n in range(10)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_yticks([200, 500, 1000, 2000, 5000, 10000, 20000], minor=False)
    axes.set_yticklabels(["200", "500", "1,000", "2,000", "5,000", "10,000", "20,000"])
    axes.minorticks_off()
    axes.set_xlim(0.95, 560)
    axes.set_xlabel("slots that draw at once")
    axes.set_ylabel("tokens a second, all slots together")
    axes.set_title("lines: the most that the H200's measured limits allow; points: measured",
                   loc="left", color=INK)  # fmt: skip
    return figure


def where_time_goes() -> Figure:
    """A decode step by what its programs do, beside its floor."""
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    axes = figure.subplots()
    cases = results("gpu.json")["cases"]
    bandwidth, burst, names = cases["limits"]["bytes a second"], 32, []
    kinds = {"products": DRAW, "attention": TRAIN, "all else": FAINT}
    for at, (stored, count, case) in enumerate(drawn(cases)):
        programs = case["programs"]
        made = ("_multiply", "gemm", "nvjet")
        spent = {
            "products": sum(ms for ms, _, name in programs[1:] if name.startswith(made)),
            "attention": sum(ms for ms, _, name in programs[1:] if name.startswith("_attend")),
        }
        spent["all else"] = programs[0][0] - sum(spent.values())
        begin = 0.0
        for kind, color in kinds.items():
            size = spent[kind] / burst
            axes.barh(at, size, left=begin, color=color, height=0.62)
            if size > 0.4:
                ink = INK if kind == "all else" else "white"
                axes.text(begin + 0.08, at, kind, va="center", color=ink)
            begin += size
        floor = 1e3 * case["bytes a step"] / bandwidth
        axes.plot([floor, floor], [at - 0.42, at + 0.42], color=INK, linewidth=2.5)
        axes.text(floor, at - 0.44, f"{floor:.2f}", ha="center", va="bottom", color=INK)
        names.append(f"{count} slot{'s' * (count > 1)}, {stored}")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.75)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("ms of a step; the black line is what its bytes take at the measured bandwidth")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "speed-roofline.svg": roofline,
    "speed-slots.svg": slots,
    "speed-step.svg": where_time_goes,
}
