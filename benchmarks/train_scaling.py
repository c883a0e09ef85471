"""What partitioning costs: one global batch on 1, 2, 4, 8 host devices and on 1 and 2 processes.

    .venv/bin/python benchmarks/train_scaling.py          # the committed figure
    .venv/bin/python benchmarks/train_scaling.py --rounds 1 --only data=8 tensor=2

The machine's cores are the same however many devices JAX makes of them, so the work a step does is
the same and the time beyond one device's is what the partitioned program adds: copies, collectives,
smaller products. Every case trains on the same tokens from the same weights, in a process of its
own; the cases take turns, so that a busy machine slows all. The losses must agree.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

from figures import RESULTS, write

SEQUENCE, BATCH, STEPS = 512, 16, 4


class Case(NamedTuple):
    """A mesh, and the processes it is spread over."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    processes: int = 1

    def __str__(self) -> str:
        parts = {k: v for k, v in self._asdict().items() if v > 1}
        return " ".join(f"{k}={v}" for k, v in parts.items()) or "one device"

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.tensor


CASES = (
    *(Case(), Case(data=2), Case(data=4), Case(data=8)),
    *(Case(fsdp=2), Case(fsdp=8), Case(tensor=2), Case(tensor=8), Case(2, 2, 2)),
    *(Case(data=2, processes=2), Case(fsdp=2, processes=2), Case(data=4, fsdp=2, processes=2)),
)


def child(case: Case, index: int, port: int) -> None:
    """One process of a case: a warm-up step, then timed ones."""
    import jax
    import numpy as np

    from gptj import ModelConfig, OptimizerConfig, StepConfig, make_mesh
    from gptj.hosts import HostsConfig, joined
    from gptj.sharding import place
    from gptj.train.state import new_state
    from gptj.train.step import train_step

    model = ModelConfig(4, 512, 8, 32, 2048, 8192, 8192, SEQUENCE)
    optimizer = OptimizerConfig(warmup_steps=1).for_run(1000)
    draw = np.random.default_rng(0)
    rows = draw.integers(0, 8192, (STEPS + 1, 1, BATCH, SEQUENCE + 1), np.int32)
    here: dict[str, Any] = (
        {"coordinator": f"127.0.0.1:{port}", "index": index} if case.processes > 1 else {}
    )
    with joined(HostsConfig(count=case.processes, **here)):
        mesh = jax.set_mesh(make_mesh(case.data, case.fsdp, case.tensor))
        with mesh if case.devices > 1 else contextlib.nullcontext():
            state, times, losses = new_state(jax.random.key(0), model, optimizer), [], []
            for step in rows:
                tokens = place(step, None, "batch", None)
                begin = time.perf_counter()
                state, metrics = train_step(
                    state, tokens, model=model, optimizer=optimizer, config=StepConfig()
                )
                losses.append(float(metrics.loss))
                times.append(time.perf_counter() - begin)
    if index == 0:
        print(json.dumps({"seconds": statistics.median(times[1:]), "losses": losses}))


def measured(case: Case) -> dict[str, Any]:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    per_process = case.devices // case.processes
    env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={per_process}"}
    words = [sys.executable, __file__, "--case", *map(str, case), "--port", str(port)]
    running = [
        subprocess.Popen([*words, "--index", str(index)], env=env, stdout=subprocess.PIPE)
        for index in range(case.processes)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{case} failed")
    return json.loads(outputs[0].splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", nargs="*", help="cases by name, as they are printed")
    parser.add_argument("--case", type=int, nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--index", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        child(Case(*args.case), args.index, args.port)
        return
    cases = [case for case in CASES if not args.only or case == Case() or str(case) in args.only]
    runs: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(args.rounds):
        for case in cases:
            runs[case].append(measured(case))
            print(f"{case!s:28} {runs[case][-1]['seconds']:6.3f} s a step", flush=True)
    report(runs, complete=not args.only)


def report(runs: dict[Case, list[dict[str, Any]]], complete: bool) -> None:
    one = runs[Case()]
    table = {}
    for case, found in runs.items():
        # Of turns side by side, so that what slowed one slowed the other.
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(found, one, strict=True)]
        pairs = list(zip(found[0]["losses"], one[0]["losses"], strict=True))
        gap = max(abs(a - b) for a, b in pairs)
        assert gap < 1e-4, f"{case} lost its way: {pairs}"
        table[str(case)] = {
            "devices": case.devices,
            "seconds": round(statistics.median(run["seconds"] for run in found), 3),
            "over_one_device": round(statistics.median(ratios) - 1, 3),
            "turns": [round(ratio - 1, 3) for ratio in ratios],
            "loss_gap": gap,
        }
        print(f"{case!s:28} {table[str(case)]['over_one_device']:+.1%}  loss off by {gap:.1e}")
    result = {
        "what": f"a step of {BATCH} x {SEQUENCE} tokens, 4 layers of d_model 512, float32",
        "cases": table,
    }
    if complete:
        write(RESULTS / "train_scaling.json", result)


if __name__ == "__main__":
    main()
