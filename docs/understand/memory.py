"""Pictures of the chapter on memory, by the planner's formulas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gptj.adapters import NO_LORA, LoRAConfig
from gptj.config import preset
from gptj.flops import hardware_flops_per_token
from gptj.plan.job import Job
from gptj.plan.place import find
from gptj.plan.plan import Plan, made
from gptj.plan.serve import ServeJob, position_bytes, weight_bytes
from gptj.plot import COLORS, FAINT, INK
from gptj.train.objective import StepConfig
from gptj.train.optimizer import OptimizerConfig

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MODEL = preset("gpt-j-6b")
LENGTH = MODEL.context
WEIGHTS, MOMENTS, COPY, GRADIENTS, KEPT = "#1864ab", "#74c0fc", "#b2d5f0", COLORS[1], COLORS[3]
WORK = "#ced4da"
GPUS = (16, 24, 40, 80, 141)
"""GB of the GPUs that people have."""

LORA = LoRAConfig(rank=16)
BF16 = {"moments": "bfloat16"}
WAYS: dict[str, dict[str, Any]] = {
    "all weights, AdamW": {},
    "moments in bfloat16": BF16,
    "Lion, in bfloat16": {"kind": "lion"} | BF16,
    "Adafactor": {"kind": "adafactor"},
    "LoRA, rank 16": {"lora": LORA},
    "QLoRA, int8": {"lora": LoRAConfig(rank=16, quantize="int8")},
    "QLoRA, nf4": {"lora": LoRAConfig(rank=16, quantize="nf4")},
}


def plan(
    on: str = "h200",
    mesh: tuple[int, int, int] = (1, 1, 1),
    rows: int = 1,
    remat: Any = "block",
    lora: LoRAConfig = NO_LORA,
    **optimizer: Any,
) -> Plan:
    """What GPT-J's training step needs."""
    step = StepConfig(dtype="bfloat16", remat=remat, lora=lora)
    how = OptimizerConfig(**optimizer).for_run(1000)
    return made(Job(find(on), MODEL, mesh, rows, 1, LENGTH, how, step))


def along_a_step() -> Figure:
    """Memory from the first layer's forward pass to its gradient, under three policies."""
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True, width_ratios=(3, 3, 4))
    for axes, remat in zip(panels, ("none", "dots", "block"), strict=True):
        _step(axes, remat)
    panels[0].set_ylabel("GB")
    axes = panels[2]
    found = plan(rows=8, remat="block")
    weights, moments = found.memory.weights / 1e9, found.memory.optimizer / 1e9
    labels = {"weights": weights / 2, "AdamW's moments": weights + moments / 2}
    for name, at in labels.items():
        axes.text(2, at, name, ha="center", va="center", color="white" if at < 30 else INK)
    axes.text(2, weights + moments + 6, "bfloat16 copy", ha="center", va="center", color=INK)
    axes.text(3.3, weights + moments + 15, "gradients", ha="center", va="center", color="white")
    panels[0].text(1.55, 104, "activations", ha="center", va="center", color="white")
    tried = json.loads((RESULTS / "gpu.json").read_text())["cases"]["train gpt-j-6b"]["tried"]
    peak = next(x["peak bytes"] for x in tried if x["rows"] == 8 and x["remat"] == "dots") / 1e9
    panels[1].plot(1.0, peak, "D", color=INK, markersize=7)
    panels[1].text(1.06, 135.5, f"measured peak: {peak:.0f}", va="center", color=INK)
    return figure


def _step(axes: Any, remat: Any) -> None:
    """One policy: bands of what stays, and above them stacks that fill and empty."""
    found = plan(rows=8, remat=remat)
    parts, kept = found.memory, found.activations[remat] / 1e9
    least = hardware_flops_per_token(MODEL, LENGTH, "none")
    backward = 3 * hardware_flops_per_token(MODEL, LENGTH, remat) / least - 1
    at = np.array([0, 1, 1, 1 + backward])
    copied = plan().parameters * 2 / 1e9
    base = [parts.weights / 1e9, parts.optimizer / 1e9, copied]
    begin = 0.0
    for size, color in zip(base, (WEIGHTS, MOMENTS, COPY), strict=True):
        axes.fill_between(at, begin, begin + size, color=color, linewidth=0)
        begin += size
    gradients = parts.gradients / 1e9
    full = np.array([0, 0, gradients, gradients])
    filled = np.array([0, 0, 0, gradients])
    axes.fill_between(at, begin, begin + full, color=GRADIENTS, alpha=0.3, linewidth=0)
    axes.fill_between(at, begin, begin + filled, color=GRADIENTS, linewidth=0)
    floor = begin + full
    axes.fill_between(at, floor, floor + kept, color=KEPT, alpha=0.3, linewidth=0)
    inside = np.array([0, kept, kept, 0])
    axes.fill_between(at, floor, floor + inside, color=KEPT, linewidth=0)
    work = (parts.temporaries / 1e9) - copied
    axes.fill_between(at, floor + kept, floor + kept + work, color=WORK, linewidth=0)
    axes.axhline(141, color=INK, linewidth=1)
    axes.set_title(f"{remat}: {parts.needed / 1e9:.0f} GB", loc="left", color=INK, fontsize=13)
    axes.set_xticks([0.5, 1 + backward / 2], ["forward", "backward"])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(0, 1 + backward)
    axes.set_ylim(0, 148)
    axes.axvline(1, color="white", linewidth=1)
    if remat == "block":
        axes.text(1 + backward, 141, "an H200's 141 GB", ha="right", va="bottom", color=INK)
        at_work = begin + gradients + kept + work + 1
        axes.text(1 + backward, at_work, "one layer at work", ha="right", color=INK)


def ways() -> Figure:
    """What a step of one row needs, by what is trained and how."""
    figure = Figure(figsize=(10.5, 5.2), layout="constrained")
    axes = figure.subplots()
    parts = {
        "weights": WEIGHTS, "optimizer": MOMENTS, "gradients": GRADIENTS, "activations": KEPT,
        "temporaries": WORK,
    }  # fmt: skip
    for at, way in enumerate(WAYS.values()):
        memory, begin = plan(**way).memory, 0.0
        for part, color in parts.items():
            size = memory.kinds()[part] / 1e9
            axes.barh(at, size, left=begin, color=color, height=0.7)
            begin += size
        _sum(axes, begin + 1, at, f"{begin:.0f} GB", va="center")
    first, begin = plan().memory.kinds(), 0.0
    said = {"weights": "weights", "optimizer": "moments", "gradients": "gradient"}
    said["temporaries"] = "copy"
    for part in parts:
        size = first[part] / 1e9
        color = "white" if part in ("weights", "gradients") else INK
        if part == "activations":  # too narrow for its name
            axes.text(begin, 0.49, part, va="center", color=KEPT)
        else:
            axes.text(begin + size / 2, 0, said[part], ha="center", va="center", color=color)
        begin += size
    for size in GPUS:
        axes.axvline(size, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.text(size, -0.62, f"{size}", ha="center", va="bottom", color=INK)
    axes.set_yticks(range(len(WAYS)), list(WAYS))
    axes.set_ylim(len(WAYS) - 0.4, -0.6)
    axes.set_xlim(0, 146)
    axes.set_xlabel("GB on one GPU; a row of 2,048 tokens, --remat block")
    axes.tick_params(axis="y", length=0)
    return figure


def _sum(axes: Any, x: float, y: float, said: str, **where: Any) -> None:
    """A bar's sum at its end, readable where a line passes behind it."""
    axes.text(
        x, y, said, color=INK, fontweight="bold", **where,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
    )  # fmt: skip


def fsdp() -> Figure:
    """What each device needs when the state is divided."""
    figure = Figure(figsize=(10.5, 5), layout="constrained")
    axes = figure.subplots()
    counts = [2**n for n in range(7)]
    for at, count in enumerate(counts):
        memory, begin = plan(f"h100:{count}", (1, count, 1), 4 * count).memory, 0.0
        bands = {
            WORK: memory.temporaries, KEPT: memory.activations, GRADIENTS: memory.gradients,
            MOMENTS: memory.optimizer, WEIGHTS: memory.weights,
        }  # fmt: skip
        middles = {}
        for color, size in bands.items():
            axes.bar(at, size / 1e9, bottom=begin, color=color, width=0.8)
            middles[color] = begin + size / 2e9
            begin += size / 1e9
        _sum(axes, at, begin + 1.2, f"{begin:.1f}", ha="center")
        names = {
            WORK: "copy, work", GRADIENTS: "gradient", MOMENTS: "moments", WEIGHTS: "weights",
        }  # fmt: skip
        for color, name in names.items() if count == 1 else ():
            ink = "white" if color in (WEIGHTS, GRADIENTS) else INK
            axes.text(at, middles[color], name, ha="center", va="center", color=ink)
    axes.text(at + 0.45, middles[KEPT], "activations", va="center", color=KEPT)
    for size in GPUS[:4]:
        axes.axhline(size, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.text(len(counts) + 0.3, size + 0.8, f"a GPU of {size} GB", ha="right", color=INK)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlabel("GPUs that share the state; 4 rows on each")
    axes.set_ylabel("GB on each")
    axes.set_xlim(-0.55, len(counts) + 0.35)
    return figure


def cache() -> Figure:
    """Keys and values by positions, for several numbers of slots."""
    figure = Figure(figsize=(10.5, 5), layout="constrained")
    axes = figure.subplots()

    def job(**changed: Any) -> ServeJob:
        return ServeJob(find("h200"), MODEL, (1, 1, 1), 1, LENGTH, **changed)

    each, small = (position_bytes(job(kv_cache=kind)) / 1e9 for kind in ("model", "int8"))
    for slots, color in zip((64, 32, 16, 8, 1), COLORS, strict=True):
        end = slots * each * LENGTH
        axes.plot([0, LENGTH], [0, end], color=color, linewidth=2)
        name = f"{slots} slots, or {slots * each / small:.0f} in int8" if slots > 1 else "1 slot"
        axes.text(LENGTH + 15, end, name, va="center", color=color)
    where: dict[Any, float] = {None: 1200, "int8": 1330, "int4": 1790}  # where no line passes
    for stored, at in where.items():
        size = weight_bytes(job(quantize=stored)) / 1e9
        axes.axhline(size, color=FAINT, linewidth=1.4, zorder=0)
        name = f"the weights in {stored or 'bfloat16'}"
        axes.text(at, size + 0.4, name, ha="center", color="#495057")
    axes.set_xlim(0, LENGTH)
    axes.set_ylim(0, 62)
    axes.set_xticks(range(0, LENGTH + 1, 256))
    axes.set_xlabel("positions of each slot")
    axes.set_ylabel("GB of keys and values")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "memory-step.svg": along_a_step,
    "memory-ways.svg": ways,
    "memory-fsdp.svg": fsdp,
    "memory-cache.svg": cache,
}
