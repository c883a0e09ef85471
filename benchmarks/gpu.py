"""What one NVIDIA GPU makes of GPT-J: first that it is right, then how fast, beside its limits.

    python benchmarks/gpu.py                        all cases, a minute or less each
    python benchmarks/gpu.py --cases right train    some of them

Every case is a process of its own, so that its memory and its failures are its own; what it found
stands in the results as soon as it ends, whatever becomes of the others. Limits are two
measured rates, of a large product in bfloat16 and of a plain reading of memory, and the maker's.
"""

from __future__ import annotations

import argparse
import functools
import glob
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_right
import jax
import jax.numpy as jnp
import numpy as np
from figures import RESULTS, write
from gpu_right import SIX, Found, seconds_of

from gptj.accelerators import named
from gptj.config import preset
from gptj.convert.load import quantised
from gptj.engine.beam import BeamParams, beam_search
from gptj.engine.device import Device
from gptj.engine.request import SamplingParams
from gptj.engine.slots import one_slot
from gptj.flops import flops_per_token, forward_flops_per_token
from gptj.hardware import measured_bandwidth
from gptj.model import draw, weights
from gptj.train.objective import StepConfig
from gptj.train.optimizer import OptimizerConfig
from gptj.train.state import new_state
from gptj.train.step import train_step

SEQUENCE = 2048
TRAINED = {
    "125m": [(16, "dots"), (32, "none")],
    "1.3b": [(8, "dots"), (16, "block")],
    "gpt-j-6b": [(4, "dots"), (8, "dots")],
}
"""Rows of 2048 tokens and what is rematerialised; the fastest that fits is kept."""

SLOTS = ("1", "8", "64", "256")
READ = 256
"""Tokens that every slot has read before it draws."""

BURST = 32

CASES: dict[str, Callable[..., Found]] = {
    each.__name__: each
    for each in (gpu_right.layer, gpu_right.attention, gpu_right.cached, gpu_right.greedy)
}


def case(function: Callable[..., Found]) -> Callable[..., Found]:
    """One of the things that can be asked for by its name."""
    CASES[function.__name__] = function
    return function


@case
def learns() -> Found:
    """The training step's loss on the same rows, over and over; and that it is a number."""
    losses = _train("125m", 4, "none", steps=30, same=True)["losses"]
    return {"first": losses[0], "last": losses[-1], "right": losses[-1] < losses[0] / 2}


@case
def limits() -> Found:
    """The measured rates that shares are of."""
    size = 8192
    a, b = (jax.random.normal(jax.random.key(n), (size, size), jnp.bfloat16) for n in (0, 1))
    product = jax.jit(jnp.matmul)
    seconds = seconds_of(lambda: product(a, b), 20)
    device = jax.devices()[0]
    return {
        "device": device.device_kind, "platform": device.client.platform_version,
        "bytes a second": measured_bandwidth(1 << 32), "flops": 2 * size**3 / seconds,
    }  # fmt: skip


@case
def train(model: str = "gpt-j-6b") -> Found:
    """The whole training step: float32 master weights, AdamW, products in bfloat16."""
    tried: list[Found] = []
    for rows, remat in TRAINED[model]:
        try:
            found = _train(model, rows, remat)
        except jax.errors.JaxRuntimeError as error:
            found = {"rows": rows, "remat": remat, "failed": str(error)[:200]}
        tried.append(found)
        print(json.dumps(found), flush=True)
    return {"tried": tried, "best": max(tried, key=lambda x: x.get("mfu", 0))}


def _train(model: str, rows: int, remat: Any, steps: int = 6, same: bool = False) -> Found:
    config, optimizer = preset(model), OptimizerConfig(warmup_steps=1).for_run(1000)
    compute = StepConfig(dtype="bfloat16", remat=remat)
    state = new_state(jax.random.key(0), config, optimizer)
    rng = np.random.default_rng(0)
    shape = (1, rows, SEQUENCE + 1)
    batches = [rng.integers(0, 50257, shape, np.int32) for _ in range(1 if same else steps)]
    seconds, losses = [], []
    for n in range(steps + 2):
        tokens = jnp.asarray(batches[n % len(batches)])
        begin = time.perf_counter()
        state, metrics = train_step(
            state, tokens, model=config, optimizer=optimizer, config=compute
        )
        losses.append(float(metrics.loss))
        seconds.append(time.perf_counter() - begin)
    best = statistics.median(seconds[2:])
    rate = rows * SEQUENCE / best
    found = {
        "model": model, "rows": rows, "remat": remat, "seconds": best, "tokens a second": rate,
        "mfu": rate * flops_per_token(config, SEQUENCE) / _peak(), "losses": losses,
        "compile seconds": seconds[0], "peak bytes": _peak_bytes(),
    }  # fmt: skip
    if not same:

        def again() -> Any:
            nonlocal state
            state, metrics = train_step(
                state, tokens, model=config, optimizer=optimizer, config=compute
            )
            return metrics

        found["programs"] = _programs(again)
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    return found


@case
def prefill(tokens: str = "2048", chunk: str = "2048") -> Found:
    """A prompt read by the engine's program, in chunks, into an empty slot."""
    params, length, size = _params("bfloat16"), int(tokens), int(chunk)
    device = Device(params, SIX, slots=1, positions=length, chunk=size, burst=1)
    prompt = np.random.default_rng(0).integers(0, 50257, length + 1).tolist()

    def read() -> Any:
        for begin in range(0, length, size):
            device.read([(0, begin, prompt[begin : begin + size + 1])], size, 0)
        return device.cache

    seconds = seconds_of(read)
    flops = forward_flops_per_token(SIX, length // 2) * length
    return {
        "chunk": size, "seconds": seconds, "tokens a second": length / seconds,
        "share of peak": flops / seconds / _peak(), "programs": _programs(read),
    }  # fmt: skip


@case
def decode(stored: str = "bfloat16", kept: str = "model", *slots: str) -> Found:
    """The engine's decode step with every slot drawing greedily, after 256 tokens each."""
    params = _params(stored)
    return {f"{count} slots": _decode(params, kept, int(count)) for count in slots or SLOTS}


def _decode(params: Any, kept: str, count: int) -> Found:
    device = Device(
        params, SIX, slots=count, positions=2 * READ, chunk=128, burst=BURST,
        int8_cache=kept == "int8",
    )  # fmt: skip
    keys = iter(jax.random.split(jax.random.key(0), 4 * SIX.layers))

    def full(x: jax.Array) -> jax.Array:
        if x.dtype == jnp.int8:
            return jax.random.randint(next(keys), x.shape, -127, 128, jnp.int8)
        return jax.random.normal(next(keys), x.shape, jnp.float32).astype(x.dtype)

    device.cache = jax.tree.map(full, device.cache)
    sampling = SamplingParams(temperature=0, max_tokens=10**6, ignore_eos=True)
    values = one_slot(SIX, [0] * READ, sampling, eos=None)

    def begin() -> None:
        for slot in range(count):
            device.put(slot, values)
        jax.block_until_ready(device.slots)

    times: dict[int, list[float]] = {0: [], BURST: []}
    for _ in range(4):
        for steps, taken in times.items():
            begin()
            start = time.perf_counter()
            jax.block_until_ready(device.draw(steps))
            taken.append(time.perf_counter() - start)
    seconds = (min(times[BURST][1:]) - min(times[0][1:])) / BURST
    moved = device.step_bytes(count * (READ + BURST // 2))
    begin()
    found = {
        "seconds a step": seconds, "tokens a second": count / seconds, "bytes a step": moved,
        "bytes a second": moved / seconds, "peak bytes": _peak_bytes(),
        "programs": _programs(lambda: device.draw(BURST)),
    }  # fmt: skip
    for leaf in jax.tree.leaves(device.cache):
        leaf.delete()
    print(count, json.dumps(found)[:200], flush=True)
    return found


@case
def beam() -> Found:
    """Four beams over a prompt of 1,919 tokens and 128 more, as MLPerf's GPT-J summarises."""
    params = _params("bfloat16")
    prompt = np.random.default_rng(0).integers(0, 50257, 1919).tolist()
    search = BeamParams(beams=4, max_tokens=128)
    run = functools.partial(beam_search, params, SIX, prompt, search, None, chunk=1024)
    run()
    begin = time.perf_counter()
    run()
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "drawn tokens a second": 128 / seconds, "peak bytes": _peak_bytes()}


# What they share


def _params(stored: Any) -> Any:
    """Random weights of GPT-J-6B; the float32 ones never all at once."""

    def make(weight: Any) -> jax.Array:
        made = jax.jit(lambda key: draw(key, weight).astype(jnp.bfloat16))
        return made(jax.random.key(0))

    params = jax.tree.map(make, weights(SIX))
    return params if stored == "bfloat16" else quantised(params, SIX, jnp.bfloat16, stored)


def _programs(run: Callable[[], Any], most: int = 30) -> list[list[Any]]:
    """On what the GPU's time went in one run: milliseconds, how often, and the program."""
    spent: Counter[str] = Counter()
    often: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        for path in glob.glob(f"{folder}/**/*.xplane.pb", recursive=True):
            for plane in jax.profiler.ProfileData.from_file(path).planes:
                for line in plane.lines if "/device:GPU" in plane.name else ():
                    for event in line.events if "Stream" in line.name else ():
                        spent[event.name] += event.duration_ns
                        often[event.name] += 1
    rows = [[round(ns / 1e6, 3), often[name], name[:70]] for name, ns in spent.most_common(most)]
    return [[round(sum(spent.values()) / 1e6, 3), sum(often.values()), "all"], *rows]


def _peak() -> float:
    """The maker's figure for dense bfloat16."""
    accelerator = named(jax.devices()[0].device_kind)
    return accelerator.peak_flops if accelerator else float("nan")


def _peak_bytes() -> int:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


RIGHT = ("layer", "attention 256", "cached", "learns", "greedy")
FAST = (
    "limits",
    *(f"train {model}" for model in TRAINED),
    "decode bfloat16 model", "decode int8 model", "decode int8 int8 1 64 256",
    "prefill 2048 2048", "prefill 2048 512", "beam",
)  # fmt: skip


def run(name: str, limit: float) -> Found:
    """A case in a process of its own; of greedy drawing, also what a CPU draws."""
    here = _process(name, limit, {})
    if name == "greedy" and "tokens" in here:
        there = _process(name, limit, {"JAX_PLATFORMS": "cpu"})
        here = {"right": here["tokens"] == there.get("tokens"), "tokens": here["tokens"][0][:8]}
    if "bound" in here:
        here["right"] = here["error"] < here["bound"]
    return here


def _short(found: Any) -> Any:
    """The same without what is long."""
    if isinstance(found, dict):
        long = ("programs", "losses", "best")
        return {name: _short(x) for name, x in found.items() if name not in long}
    if isinstance(found, list):
        return [_short(x) for x in found]
    return float(f"{found:.4g}") if isinstance(found, float) else found


def _process(name: str, limit: float, environment: dict[str, str]) -> Found:
    own = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.97", **os.environ, **environment}
    command, begin = [sys.executable, __file__, "--one", *name.split()], time.perf_counter()
    try:
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=limit)
        found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
        found |= {"failed": done.stderr[-600:]} if done.returncode else {}
    except subprocess.TimeoutExpired as late:
        found = {"failed": f"over {limit:.0f} s", "said": str(late.stdout or "")[-600:]}
    return found | {"whole seconds": round(time.perf_counter() - begin, 1)}


def main() -> None:
    """Run the cases one after another, and write what they found as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=["right", "fast"])
    parser.add_argument("--limit", type=float, default=120, help="seconds a case")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--one", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(CASES[asked.one[0]](*asked.one[1:])))
        return
    sets = {"right": RIGHT, "fast": FAST}
    names = [name for each in asked.cases for name in sets.get(each, (each,))]
    found: Found = {}
    for name in names:
        found[name] = run(name, asked.limit)
        print(name, json.dumps(_short(found[name])), flush=True)
        write(asked.out, {"cases": found})


if __name__ == "__main__":
    main()
