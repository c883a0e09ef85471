"""Time a training step beside `transformers` + torch on the same CPU threads, A B A B.

    make bench                              # float32, the committed figure
    .venv/bin/python benchmarks/train_cpu.py --dtype bfloat16

The model is the 125m preset (12 layers, d_model 768, 12 heads, 50,400 vocabulary rows) at sequence
512 and batch 4, with AdamW and a clipped gradient on both sides. Each side lives in a process of
its own, so that peak memory is its own; they take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from figures import RESULTS, threads, write

SEQUENCE, BATCH, VOCAB = 512, 4, 50257


def ours(dtype: str) -> Callable[[np.ndarray], float]:
    """One call, one training step of this project: the program `gptj train` runs."""
    import jax

    from gptj.config import preset
    from gptj.train.optimizer import OptimizerConfig
    from gptj.train.state import new_state
    from gptj.train.step import StepConfig, train_step

    model = preset("125m")
    optimizer = OptimizerConfig(warmup_steps=1).for_run(1000)
    state = new_state(jax.random.key(0), model, optimizer)

    def step(tokens: np.ndarray) -> float:
        nonlocal state
        state, metrics = train_step(
            state, tokens[None], model=model, optimizer=optimizer, config=StepConfig(dtype=dtype)
        )
        jax.block_until_ready(state)
        return float(metrics.loss)

    return step


def peer(dtype: str) -> Callable[[np.ndarray], float]:
    """The same step by transformers' GPTJForCausalLM and torch's fused AdamW."""
    import torch
    from transformers import GPTJConfig, GPTJForCausalLM

    torch.set_num_threads(threads())
    config = GPTJConfig(
        vocab_size=50400, n_positions=SEQUENCE, n_embd=768, n_layer=12, n_head=12, rotary_dim=32,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    model = GPTJForCausalLM(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )

    def step(tokens: np.ndarray) -> float:
        rows = torch.from_numpy(tokens).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), rows[:, 1:].flatten()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def work(side: str, dtype: str) -> None:
    """A worker: for each line on stdin take one step and print what it measured."""
    step = {"ours": ours, "peer": peer}[side](dtype)
    generator = np.random.default_rng(0)
    for _ in sys.stdin:
        tokens = generator.integers(0, VOCAB, (BATCH, SEQUENCE + 1), dtype=np.int32)
        begin = time.perf_counter()
        loss = step(tokens)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "loss": loss, "peak_bytes": peak}), flush=True)


@dataclasses.dataclass
class Worker:
    """One side's process and what its steps measured."""

    process: subprocess.Popen[str]
    steps: list[dict[str, float]]

    @classmethod
    def start(cls, side: str, dtype: str) -> Worker:
        command = [sys.executable, __file__, "--dtype", dtype, "--worker", side]
        pipe = subprocess.PIPE
        return cls(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True), [])

    def step(self) -> float:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker stopped with status {self.process.wait()}")
        self.steps.append(json.loads(line))
        return self.steps[-1]["seconds"]

    @property
    def median(self) -> float:
        return statistics.median(step["seconds"] for step in self.steps)

    @property
    def peak_gib(self) -> float:
        return max(step["peak_bytes"] for step in self.steps) / 2**30


def measure(dtype: str, rounds: int) -> dict[str, object]:
    """Take turns `rounds` times after two uncounted steps each."""
    sides = {side: Worker.start(side, dtype) for side in ("ours", "peer")}
    for index in range(rounds + 2):
        if index == 2:
            for worker in sides.values():
                worker.steps.clear()
        seconds = {side: worker.step() for side, worker in sides.items()}
        label = f"round {index - 1}" if index >= 2 else "warm-up"
        print(
            f"{label:8}  ours {seconds['ours']:6.2f} s   torch {seconds['peer']:6.2f} s", flush=True
        )
    for worker in sides.values():
        assert worker.process.stdin
        worker.process.stdin.close()
        worker.process.wait()
    pairs = zip(sides["peer"].steps, sides["ours"].steps, strict=True)
    ratio = statistics.median(peer["seconds"] / ours["seconds"] for peer, ours in pairs)
    return {
        "command": f"python benchmarks/train_cpu.py --dtype {dtype} --rounds {rounds}",
        "what": "seconds a training step, 125m preset, sequence 512, batch 4",
        "dtype": dtype,
        "rounds": rounds,
        "ours_seconds": round(sides["ours"].median, 3),
        "torch_seconds": round(sides["peer"].median, 3),
        "speed_ratio": round(ratio, 3),
        "ours_peak_gib": round(sides["ours"].peak_gib, 2),
        "torch_peak_gib": round(sides["peer"].peak_gib, 2),
        "ours_seconds_all": [round(step["seconds"], 3) for step in sides["ours"].steps],
        "torch_seconds_all": [round(step["seconds"], 3) for step in sides["peer"].steps],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5, help="counted steps of each side")
    parser.add_argument(
        "--out", type=Path, help="the JSON to write, instead of benchmarks/results/"
    )
    parser.add_argument("--worker", choices=["ours", "peer"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker, args.dtype)
    result = measure(args.dtype, args.rounds)
    print(
        f"a step: ours {result['ours_seconds']} s, torch {result['torch_seconds']} s; "
        f"speed ratio {result['speed_ratio']} (above 1: ours is faster)\n"
        f"peak memory: ours {result['ours_peak_gib']} GiB, torch {result['torch_peak_gib']} GiB"
    )
    write(args.out or RESULTS / f"train_cpu_{args.dtype}.json", result)


if __name__ == "__main__":
    main()
