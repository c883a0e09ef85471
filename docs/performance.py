"""Write docs/performance.md from the results under benchmarks/results/: for docs/build.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "performance.md"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
LINK = "../benchmarks/results"

HEAD = """# Performance

What was measured, each figure with the command that measures it; [the notebook](lab.md) says what \
was tried. Made by `make docs` from the files in [`benchmarks/results/`](../benchmarks/results); a \
test fails when it is out of date.

`gptj bench` measures the programs that users run. Each side is a process of its own, the sides \
take turns, and a figure is the median of the turns that count. The limit is what the machine gave \
in the same run: to a plain reading of memory, or to a large product, whichever binds. What is \
stored in fewer bits than 16 must be read in those bits, so that the same speed is less of its \
limit. Ratios compare turn by turn, in brackets the least and the most."""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for path in sorted(RESULTS.glob("20*.json"), reverse=True):
        for subject, found in json.loads(path.read_text()).items():
            parts += subject_part(subject, found, path.name)
    if (RESULTS / "growth.json").exists():
        parts += growth(json.loads((RESULTS / "growth.json").read_text()))
    parts.append("## Everything else that was measured")
    parts.append(others())
    return "\n\n".join(parts) + "\n"


def subject_part(subject: str, found: Any, name: str) -> Iterator[str]:
    """What `gptj bench SUBJECT` found: the limits, a table, the ratios and the picture."""
    machine, limits = found["machine"], found["limits"]
    versions = ", ".join(f"{key} {machine[key]}" for key in VERSIONS if key in machine)
    products = limits["flops"].items()
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {kind}" for kind, rate in products)
    of = f" {Path(found['asked']['model']).name}" if "model" in found["asked"] else ""
    yield f"## {subject.capitalize()}{of}, {machine['processor']}, {machine['threads']} threads"
    yield (
        f"`{found['command']}`, {found['date']}, [`{name}`]({LINK}/{name}); {versions}. The "
        f"machine reads {limits['bandwidth'] / 1e9:.1f} GB/s, and multiplies {rates}."
    )
    yield table(found)
    yield from ratios(found)
    yield from (f"Left out: {why}." for why in found["left_out"])
    if f"images/bench-{subject}.png" in found["command"]:
        yield f"![Each side beside the limit](images/bench-{subject}.png)"


VERSIONS = ("python", "jax", "torch", "transformers", "ctranslate2")


def table(found: Any) -> str:
    """A row for each side of each case."""
    unit = found["figures"][0]["work"]["unit"]
    rows = [f"| | | {unit}/s | of the limit | peak GiB |", "|---" * 5 + "|"]
    before = ""
    for each in found["figures"]:
        case = each["case"] if each["case"] != before else ""
        before, rate = each["case"], each["per_second"]
        share = f"{100 * each['share']:.0f} %, {each['bound']}" if "share" in each else ""
        speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        peak = f"{each['peak_bytes'] / 2**30:.2f}"
        rows.append(f"| {case} | {each['side']} | {speed} | {share} | {peak} |")
    return "\n".join(rows)


def ratios(found: Any) -> Iterator[str]:
    """How many times as fast as each peer of the same type."""
    if found["ratios"]:
        rows = ["| | ours | over | times as fast |", "|---" * 4 + "|"]
        for each in found["ratios"]:
            spread = f"({each['least']:.2f} to {each['most']:.2f})"
            cells = (each["case"], each["ours"], each["peer"], f"{each['median']:.2f} {spread}")
            rows.append(f"| {' | '.join(cells)} |")
        yield "\n".join(rows)


THINGS = {
    "step": "a training step",
    "compile": "compiling it",
    "memory": "its memory",
    "decode": "a decode step",
    "open": "opening a store",
    "row": "reading a shuffled row",
}


def growth(found: Any) -> Iterator[str]:
    """How what is measured grows with each size."""
    machine, base = found["machine"], found["base"]
    small = ", ".join(f"{size} {number}" for size, number in base.items())
    yield "## Growth"
    yield (
        f"`{found['command']}`, {found['date']}, {machine['processor']}, {machine['threads']} "
        f"threads. One size at a time is changed, the others are {small}; vocabulary 2,000. The "
        "power of a size is fitted over the larger half; beside it that of the work: a step's "
        "multiplications, a decode step's slots, a width's square of weights; nothing for "
        "compiling, since layers are one loop, and for a store, whatever it holds."
    )
    rows = ["| | by | sizes | from | to | power | must be |", "|---" * 7 + "|"]
    for each in found["curves"]:
        sizes, values = each["sizes"], each["found"]
        show = in_bytes if each["thing"] == "memory" else in_seconds
        cells = (
            THINGS[each["thing"]], each["size"], f"{sizes[0]:,} to {sizes[-1]:,}",
            show(values[0]), show(values[-1]), f"{each['power']:.2f}", f"{each['must']:.2f}",
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    yield "\n".join(rows)
    yield (
        "Compiling takes as long at every size: layers are one loop, and on one CPU attention is "
        "one native program. Rows are read from memory: the first time, they come from the disk."
    )
    yield "![Time and memory against each size](images/growth.png)"


def in_seconds(value: float) -> str:
    """With a unit that fits."""
    for size, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def in_bytes(value: float) -> str:
    """In MiB."""
    return f"{value / 2**20:,.0f} MiB"


def others() -> str:
    """Of each other file what it holds, and the command that made it."""
    rows = ["| what | command | machine | day |", "|---" * 4 + "|"]
    for path in sorted(RESULTS.glob("[a-z]*.json")):
        found = json.loads(path.read_text())
        if "command" not in found or path.stem == "growth":  # it has a part of its own
            continue
        machine = found.get("machine", "")
        where = found.get("device") or machine
        where = where["processor"] if isinstance(where, dict) else where
        what = f"[{TITLES.get(path.stem, path.stem)}]({LINK}/{path.name})"
        rows.append(f"| {what} | `{found['command']}` | {where} | {found.get('date', '')} |")
    return "\n".join(rows)


TITLES = {
    "arithmetic": "A small model learns to add, subtract and multiply",
    "checkpoint_stall": "Training time that checkpoints cost",
    "data": "Text to tokens, and rows of tokens",
    "eval_cpu": "Scoring questions beside lm-eval's own model",
    "exactness": "What company changes in an answer",
    "finetune_lr": "Learning rates of fine-tuning",
    "gpu": "One H200: training, reading, drawing",
    "kills": "Fifty kills of a training run",
    "load_6b": "Loading and converting 6B",
    "quantisation": "Quality in fewer bits",
    "serve_load": "A server under load",
    "speculate": "Guessing ahead",
    "train_scaling": "What splitting over devices costs",
}
