"""Pictures of the last chapter: the run of 2021 and the same run on later hardware."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from gptj.bench.recorded import ORIGINAL
from gptj.config import preset
from gptj.flops import flops_per_token, hardware_flops_per_token
from gptj.plan.job import Job
from gptj.plan.place import find
from gptj.plan.plan import made
from gptj.plot import COLORS, FAINT, INK
from gptj.train.objective import StepConfig
from gptj.train.optimizer import OptimizerConfig

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SIX = preset("gpt-j-6b")
TOKENS = 383_500 * 512 * 2048
DAY = 86400
THEN, TPU, GPU = COLORS[1], COLORS[0], COLORS[2]


def results(name: str) -> dict[str, Any]:
    """What was measured or compiled."""
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def plans() -> dict[str, dict[str, Any]]:
    """The compiled plans of GPT-J's training, by place."""
    return {
        found["job"]["place"]: found
        for command, found in results("plan.json").items()
        if "gpt-j-6b" in command and "--attention" not in command
    }


def gpus(kind: str, count: int) -> float:
    """Days that so many GPUs of a kind would take, by formula."""
    fsdp, how = min(count, 8), OptimizerConfig().for_run(1000)
    rows = 512 // count if count > 128 else 4 if count > 1 else 1
    step = StepConfig(dtype="bfloat16", remat="block")
    mesh = (count // fsdp, fsdp, 1)
    job = Job(find(f"{kind}:{count}"), SIX, mesh, 512, 512 // count // rows, 2048, how, step)
    return made(job).days(TOKENS)


def days() -> Figure:
    """Days of training against chips."""
    figure = Figure(figsize=(10.5, 6), layout="constrained")
    axes = figure.subplots()
    for kind, least, color in (("h200", 1, GPU), ("b200", 8, COLORS[4])):
        counts = [count for count in (1, 8, 32, 128, 256) if count >= least]
        axes.plot(counts, [gpus(kind, count) for count in counts], color=color, linewidth=2)
    axes.text(2.1, 260, "H200; H100 likewise", color=GPU)
    axes.text(256, 0.93, "B200, at half its peak", color=COLORS[4], ha="right")
    for place, found in plans().items():
        if found["compiled"]:
            each = TOKENS / found["tokens_per_second"] / DAY
            axes.plot(found["chips"], each, "o", color=TPU, markersize=8, zorder=4)
            where = (9, 3) if place != "v3-256" else (-62, -18)
            axes.annotate(place, (found["chips"], each), where, color=TPU,
                          textcoords="offset points")  # fmt: skip
    run = ORIGINAL[0]
    taken = TOKENS / run.tokens_per_second / DAY
    axes.plot(run.cores / 2, taken, "*", color=THEN, markersize=30, zorder=3)
    axes.annotate(
        "2021, as written down:\n151k tokens/s on 128 chips", (run.cores / 2, taken), (14, 18),
        textcoords="offset points", color=THEN,
    )  # fmt: skip
    tried = max(results("gpu.json")["cases"]["train gpt-j-6b"]["tried"], key=lambda x: x["mfu"])
    here = TOKENS / tried["tokens a second"] / DAY
    axes.plot(1, here, "D", color=INK, markersize=9, zorder=3)
    axes.text(0.95, 0.56 * here, "one H200's step,\nas measured", va="top", color=INK)
    _in_words(axes)
    axes.set_xlabel("chips, or GPUs")
    axes.set_ylabel("days for 402 billion tokens")
    return figure


def _in_words(axes: Any) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [2**n for n in range(9)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    marks = {1: "a day", 3: "3 days", 7: "a week", 30: "a month", 91: "3 months"}
    marks |= {365: "a year", 1095: "3 years"}
    axes.set_yticks(list(marks), list(marks.values()))
    axes.minorticks_off()
    axes.grid(True, color=FAINT, alpha=0.3, linewidth=0.6)
    axes.set_xlim(0.9, 420)


class Share(NamedTuple):
    """What a run makes of its hardware."""

    name: str
    mfu: float
    hfu: float
    is_measured: bool


def shares() -> Iterator[Share]:
    """GPT-J's training, measured and planned, all counted as `gptj train` does."""
    least = flops_per_token(SIX, 2048)
    again = hardware_flops_per_token(SIX, 2048, "block") / least
    for run in reversed(ORIGINAL):
        name = f"2021: {run.hardware.split()[1]}, {run.source.split(', ')[-1]}"
        yield Share(name, run.share, run.share * again, True)
    for place, found in plans().items():
        used = found["utilisation"]
        yield Share(f"planned: {place}", used["gptj_mfu"], used["gptj_hfu"], False)
    found = results("gpu.json")
    first = found["earlier"]["train, products and sums as on a CPU"]
    last = found["cases"]["train gpt-j-6b"]["tried"]
    for name, tried in (("at first", first), ("as it is", last)):
        best = max((x for x in tried if x["remat"] == "dots"), key=lambda x: x["mfu"])
        made = hardware_flops_per_token(SIX, 2048, best["remat"]) / least
        yield Share(f"one H200's step, {name}", best["mfu"], best["mfu"] * made, True)


def share() -> Figure:
    """Shares of the makers' peak, what is needed and what is computed again."""
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    axes = figure.subplots()
    found = list(shares())
    for at, each in enumerate(found):
        color = (THEN if "2021" in each.name else INK) if each.is_measured else TPU
        alpha = 1.0 if each.is_measured else 0.55
        axes.barh(at, 100 * each.mfu, color=color, height=0.66, alpha=alpha)
        axes.barh(at, 100 * (each.hfu - each.mfu), left=100 * each.mfu, color=color, height=0.66,
                  alpha=0.3 * alpha)  # fmt: skip
        axes.text(100 * each.mfu - 0.7, at, f"{100 * each.mfu:.0f} %", ha="right", va="center",
                  color="white" if each.is_measured else INK, fontweight="bold")  # fmt: skip
    axes.set_yticks(range(len(found)), [each.name for each in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 70)
    axes.set_xlabel("% of the makers' peak; light: what is computed again to save memory")
    return figure


def memory() -> Figure:
    """What a device needs, of what it has."""
    figure = Figure(figsize=(10.5, 5), layout="constrained")
    axes = figure.subplots()
    bands = {
        "weights": "#1864ab", "optimizer": "#74c0fc", "gradients": COLORS[1],
        "activations": COLORS[3], "temporaries": "#ced4da",
    }  # fmt: skip
    said = {"optimizer": "moments", "temporaries": "copy"}
    found = plans()
    for at, (place, each) in enumerate(found.items()):
        parts, begin = each["memory"], 0.0
        for part, color in bands.items():
            size = parts[part] / 2**30
            axes.barh(at, size, left=begin, color=color, height=0.66)
            if place == "h200:1" and size > 8:
                ink = "white" if part in ("weights", "gradients") else INK
                middle = begin + size / 2
                axes.text(middle, at, said.get(part, part), ha="center", va="center", color=ink)
            begin += size
        have = parts["available"] / 2**30
        axes.plot([have, have], [at - 0.42, at + 0.42], color=INK, linewidth=2.5)
        right = max(have, begin) + 1.2
        axes.text(right, at, f"{begin:.1f} of {have:.0f} GiB", va="center", color=INK)
    axes.set_yticks(range(len(found)), list(map(_mesh, found.values())))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 155)
    axes.set_xlabel("GiB on one device; the black line is what it has")
    return figure


def _mesh(found: dict[str, Any]) -> str:
    """Where, and how it is divided."""
    sizes = zip(("data", "fsdp", "tensor"), found["job"]["mesh"], strict=True)
    words = ", ".join(f"{name}={size}" for name, size in sizes if size > 1)
    return f"{found['job']['place']}   {words or 'one device'}"


PICTURES: dict[str, Callable[[], Figure]] = {
    "then-and-now-memory.svg": memory,
    "then-and-now-days.svg": days,
    "then-and-now-share.svg": share,
}
