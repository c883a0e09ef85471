"""How time and memory grow with each size, and whether any grows faster than it must.

    python benchmarks/growth.py                     some four minutes on two CPU cores
    python benchmarks/growth.py --sizes layers seq  some of them

One size at a time is doubled, the others stay those of a small GPT-J; what a training step, its
compilation, a decode step, or rows of data take is fitted by a power of the size, over the larger
half of the sizes, where constant costs no longer hide it. Each is held against what the work is: a
step must not grow faster than its multiplications, nor compiling with the depth. Writes
benchmarks/results/growth.json and docs/images/growth.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from data import sparse_store
from figures import RESULTS, write

from gptj.bench import own
from gptj.bench.config import DecodeBench
from gptj.config import ModelConfig
from gptj.data.batches import TrainBatches
from gptj.data.mixture import Mixture
from gptj.data.store import TokenStore
from gptj.flops import flops_per_token
from gptj.model import init
from gptj.train.objective import StepConfig
from gptj.train.optimizer import OptimizerConfig
from gptj.train.state import new_state
from gptj.train.step import train_step

BASE = {"layers": 4, "width": 256, "seq": 256, "batch": 4}
TRAINED = {
    "layers": (2, 4, 8, 16, 32),
    "width": (128, 256, 512, 1024),
    "seq": (128, 256, 512, 1024, 2048),
    "batch": (1, 2, 4, 8, 16),
}
SLOTS = (1, 4, 8, 16, 32, 64)
TOKENS = (10**6, 10**7, 10**8, 10**9)
TURNS = 3

Measured = dict[str, float]
"""Of one size: the seconds and bytes of each thing that is measured."""

SLACK = 0.15
"""How much a fitted power may exceed what it must be: the noise of a shared machine."""


def shape(layers: int, width: int, seq: int) -> ModelConfig:
    return ModelConfig(layers, width, width // 64, 32, 4 * width, 2000, 2048, context=seq)


def trained(layers: int, width: int, seq: int, batch: int) -> Measured:
    """A training step: compiled, then made on random rows."""
    model, optimizer = shape(layers, width, seq), OptimizerConfig(warmup_steps=1).for_run(1000)
    compute, rows = StepConfig(), np.random.default_rng(0).integers(0, 2000, (1, batch, seq + 1))
    state, tokens = new_state(jax.random.key(0), model, optimizer), rows.astype(np.int32)
    options: dict[str, Any] = {"model": model, "optimizer": optimizer, "config": compute}
    jax.clear_caches()
    begin = time.perf_counter()
    compiled = train_step.lower(state, tokens, **options).compile()
    seconds = time.perf_counter() - begin
    used: Any = compiled.memory_analysis()
    times = []
    for _ in range(TURNS + 1):
        begin = time.perf_counter()
        state, metrics = compiled(state, tokens)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - begin)
    return {
        "step": min(times[1:]),
        "compile": seconds,
        "memory": float(used.temp_size_in_bytes + used.argument_size_in_bytes),
        "work": float(flops_per_token(model, seq) * seq * batch),
    }


def drawn(slots: int) -> Measured:
    """A decode step of so many slots."""
    config = shape(BASE["layers"], BASE["width"], BASE["seq"])
    bench = DecodeBench(slots=(slots,), read=16, new=32)
    run = own.drawing(bench, init(jax.random.key(0), config), config, slots)
    run()
    seconds = min(run() for _ in range(TURNS)) / bench.new
    return {"decode": seconds, "work": float(slots)}


def read(tokens: int) -> Measured:
    """Opening a store of so many tokens, and a row of it in shuffled order."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        sparse_store(store, tokens)
        begin = time.perf_counter()
        batches = TrainBatches(Mixture.of(TokenStore.open(store)), 256, 512)
        opened = time.perf_counter() - begin
        steps = range(1, 21)
        for _ in range(2):  # the first time the pages come into memory, which is the disk's affair
            begin = time.perf_counter()
            for step in steps:
                batches.batch(step)
        return {"open": opened, "row": (time.perf_counter() - begin) / (512 * len(steps))}


@dataclasses.dataclass(frozen=True)
class Curve:
    """What one thing took at each size, and the power that it must not exceed."""

    size: str
    thing: str
    sizes: tuple[int, ...]
    found: tuple[float, ...]
    must: float

    @property
    def power(self) -> float:
        """The slope over the larger half of the sizes, both in logarithms."""
        half = len(self.sizes) // 2
        return slope(self.sizes[half - 1 :], self.found[half - 1 :])


def slope(sizes: tuple[int, ...], found: tuple[float, ...]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(found), 1)[0])


def curves(size: str) -> Iterator[Curve]:
    """What grows with a size."""
    run: Callable[[int], Measured] = {"slots": drawn, "tokens": read}.get(
        size, lambda n: trained(**{**BASE, size: n})
    )
    sizes = {"slots": SLOTS, "tokens": TOKENS}.get(size) or TRAINED[size]
    found = []
    for n in sizes:
        found.append(run(n))
        print(size, n, {key: float(f"{value:.3g}") for key, value in found[-1].items()}, flush=True)
    work = tuple(each.get("work", 1.0) for each in found)
    half = len(sizes) // 2 - 1
    for thing in (key for key in found[0] if key != "work"):
        must = slope(sizes[half:], work[half:]) if thing in ("step", "decode") else 0.0
        if thing == "memory":
            must = {"width": 2.0}.get(size, 1.0)
        yield Curve(size, thing, sizes, tuple(each[thing] for each in found), must)


def draw(found: list[Curve], out: Path) -> None:
    from gptj.plot import Line, plot_growth

    panels: dict[str, list[Line]] = {}
    for curve in found:
        said = f"{curve.size}: {curve.power:.2f}, must {curve.must:.2f}"
        line = Line(said, curve.sizes, curve.found)
        panels.setdefault(UNITS[curve.thing], []).append(line)
    plot_growth(panels, out)


UNITS = {
    "step": "a training step, seconds",
    "compile": "compiling it, seconds",
    "memory": "its memory, bytes",
    "decode": "a decode step, seconds",
    "open": "opening a store, seconds",
    "row": "reading a row, seconds",
}


def main() -> None:
    sizes = (*TRAINED, "slots", "tokens")
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sizes", nargs="*", default=sizes, choices=sizes)
    parser.add_argument("--out", type=Path, default=RESULTS / "growth.json")
    parser.add_argument("--plot", type=Path, default=Path("docs/images/growth.png"))
    asked = parser.parse_args()
    found = [curve for size in asked.sizes for curve in curves(size)]
    entries = [{**dataclasses.asdict(each), "power": round(each.power, 3)} for each in found]
    write(asked.out, {"what": "powers of each size, fitted", "base": BASE, "curves": entries})
    draw(found, asked.plot)
    for each in found:
        worse = "  WORSE THAN IT MUST BE" if each.power > each.must + SLACK else ""
        print(f"{each.thing:8} by {each.size:7} {each.power:5.2f}, must {each.must:.2f}{worse}")


if __name__ == "__main__":
    main()
