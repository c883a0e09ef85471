"""Generate beside `transformers` + torch on the same CPU threads, A B A B: batches and a mix.

    .venv/bin/python benchmarks/serve_cpu.py --rounds 3

The model is the 125m preset with random weights (12 layers, d_model 768, 12 heads, 50,400 rows of
vocabulary; 162 million numbers), prompts of 64 to 256 tokens and 64 new ones each, greedily.
`batch 1`, `8` and `32` ask so many at once; the `mix` is 64 requests, which transformers answers in
batches of 8, 16 or 32, whichever is fastest, padded on the left. Each side has each dtype in a
process of its own, and is credited with the better of float32 and bfloat16; they take turns. The
first turn warms up, and chooses each side's way to answer the mix for those that count.
Afterwards `gptj bench serve` measures one decode step of 1, 8 and 32 busy slots, beside what the
machine's memory gives to a plain reading.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from figures import RESULTS, threads, write

NEW, VOCAB = 64, 50257
BATCHES, MIX, STATIC = (1, 8, 32), 64, (8, 16, 32)
KINDS = (*(f"batch {n}" for n in BATCHES), "mix")
SIDES = ("ours float32", "ours bfloat16", "torch float32", "torch bfloat16")

Answer = Callable[[list[list[int]]], int]


def prompts(count: int) -> list[list[int]]:
    draw = np.random.default_rng(count)
    return [draw.integers(0, VOCAB, draw.integers(64, 257)).tolist() for _ in range(count)]


def ours(dtype: str) -> dict[str, Callable[[], int]]:
    """For each case, how to answer it; gives the tokens drawn."""
    import jax

    from gptj.config import preset
    from gptj.engine.config import EngineConfig
    from gptj.engine.engine import Engine
    from gptj.engine.request import Request, SamplingParams
    from gptj.model import init

    config = preset("125m")
    params = jax.tree.map(lambda x: x.astype(dtype), init(jax.random.key(0), config))
    greedy = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)

    def case(slots: int, count: int) -> Callable[[], int]:
        options = EngineConfig(slots, positions=256 + NEW, prefix_bytes=0)
        engine = Engine(params, config, None, options)
        engine.warm_up()
        asked = [Request(prompt, greedy) for prompt in prompts(count)]
        return lambda: sum(len(one.tokens) for (one,) in engine.run(asked))

    cases = {f"batch {count}": case(count, count) for count in BATCHES}
    return cases | {f"mix, {slots} slots": case(slots, MIX) for slots in (16, 32)}


def peer(dtype: str) -> dict[str, Callable[[], int]]:
    """The same by transformers' GPTJForCausalLM."""
    import torch
    from transformers import GPTJConfig, GPTJForCausalLM

    torch.set_num_threads(threads())
    config = GPTJConfig(
        vocab_size=50400, n_positions=2048, n_embd=768, n_layer=12, n_head=12, rotary_dim=32,
        bos_token_id=50256, eos_token_id=50256,
    )  # fmt: skip
    model = GPTJForCausalLM(config).eval().to(getattr(torch, dtype))

    def answer(batch: list[list[int]]) -> int:
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in batch])
        seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch])
        with torch.inference_mode():
            made = model.generate(
                ids, attention_mask=seen, do_sample=False, pad_token_id=0,
                min_new_tokens=NEW, max_new_tokens=NEW,
            )  # fmt: skip
        return made.shape[0] * (made.shape[1] - longest)

    def in_batches(size: int) -> Callable[[], int]:
        asked = prompts(MIX)
        batches = [asked[begin : begin + size] for begin in range(0, MIX, size)]
        return lambda: sum(map(answer, batches))

    cases = {f"batch {count}": (lambda n=count: answer(prompts(n))) for count in BATCHES}
    return cases | {f"mix, batches of {size}": in_batches(size) for size in STATIC}


def work(side: str) -> None:
    """A worker: for each line on stdin answer the case it names and print the tokens a second."""
    name, dtype = side.split()
    cases = {"ours": ours, "torch": peer}[name](dtype)
    print(json.dumps(list(cases)), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        tokens = cases[line.strip()]()
        print(json.dumps(tokens / (time.perf_counter() - begin)), flush=True)


class Worker:
    """One side's process."""

    def __init__(self, side: str) -> None:
        words, pipe = [sys.executable, __file__, "--worker", side], subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)
        self.cases: list[str] = self._next()
        self.speeds: dict[str, list[float]] = {case: [] for case in self.cases}

    def run(self, case: str) -> float:
        assert self.process.stdin
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        return self._next()

    def _next(self):
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker stopped with status {self.process.wait()}")
        return json.loads(line)


def measure(rounds: int, sides: list[str]) -> dict[str, object]:
    workers = {side: Worker(side) for side in sides}
    for turn in range(rounds + 1):
        for kind in KINDS:
            for side, worker in workers.items():
                found = {}
                for case in (case for case in worker.cases if case.startswith(kind)):
                    found[case] = speed = worker.run(case)
                    if turn:
                        worker.speeds[case].append(speed)
                    print(
                        f"{turn or 'warm-up':8} {side:14} {case:20} {speed:7.1f} tokens/s",
                        flush=True,
                    )
                slower = set(found) - {max(found, key=lambda case: found[case])}
                worker.cases = [case for case in worker.cases if case not in slower]
    medians = {
        side: {case: round(statistics.median(worker.speeds[case]), 1) for case in worker.cases}
        for side, worker in workers.items()
    }
    return {
        "command": f"python benchmarks/serve_cpu.py --rounds {rounds}",
        "what": "new tokens a second, 125m preset, prompts of 64 to 256, 64 new, greedy",
        "tokens_per_second": medians,
        "ratio": {
            kind: _ratio(medians, kind) for kind in (*(f"batch {n}" for n in BATCHES), "mix")
        },
        "all": {side: worker.speeds for side, worker in workers.items()},
    }


def decode_steps(dtype: str) -> dict[str, dict[str, float]]:
    """For each batch, a decode step of ours: its milliseconds, GB/s, and the memory's GB/s."""
    found = {}
    for count in BATCHES:
        with tempfile.NamedTemporaryFile() as file:
            words = ["bench", "serve", "--dtype", dtype, "--slots", str(count)]
            words += ["--requests", str(2 * count), "--temperature", "0", "--json", file.name]
            subprocess.run([sys.executable, "-m", "gptj.cli", *words], check=True)
            measured = json.load(file)["measured"]
        speed = measured["step_bytes"] / measured["step_seconds"]
        found[f"batch {count}"] = {
            "ms": round(1e3 * measured["step_seconds"], 2),
            "gb_per_second": round(speed / 1e9, 2),
            "memory_gb_per_second": round(measured["bandwidth"] / 1e9, 2),
            "share": round(speed / measured["bandwidth"], 3),
        }
    return found


def _ratio(medians: dict[str, dict[str, float]], kind: str) -> float:
    """Ours over theirs, each side's best dtype and way."""

    def best(name: str) -> float:
        return max(
            (speed for side, cases in medians.items() if side.startswith(name)
             for case, speed in cases.items() if case == kind or case.startswith(f"{kind},")),
            default=float("nan"),
        )  # fmt: skip

    return round(best("ours") / best("torch"), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3, help="counted turns of each case")
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES)
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_cpu.json")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker)
    result = measure(args.rounds, args.sides)
    for side, cases in result["tokens_per_second"].items():
        print(side, cases)
    print("ours over torch:", result["ratio"])
    result["decode_step"] = {dtype: decode_steps(dtype) for dtype in ("float32", "bfloat16")}
    write(args.out, result)


if __name__ == "__main__":
    main()
