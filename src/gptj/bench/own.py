"""Our sides: the programs that `gptj train`, `generate` and `serve` run, with nothing around."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gptj.api import load
from gptj.bench import serve
from gptj.bench.config import (
    Bench,
    DataBench,
    DecodeBench,
    LoadBench,
    PrefillBench,
    ServeBench,
    TrainBench,
)
from gptj.bench.inputs import batches, prompts
from gptj.bench.models import stored_as
from gptj.bench.records import Runs
from gptj.bench.work import name_of, weight_files
from gptj.config import ModelConfig
from gptj.data.batches import TrainBatches
from gptj.data.mixture import Mixture
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Request, SamplingParams
from gptj.sharding import place
from gptj.train.objective import StepConfig
from gptj.train.optimizer import OptimizerConfig
from gptj.train.state import new_state
from gptj.train.step import train_step


def runs(bench: Bench, config: ModelConfig | None, stored: str) -> Runs:
    """What does the work of each case, ready to be timed."""
    if isinstance(bench, LoadBench):
        return {"from disk": lambda: _load(bench.model, stored)}
    if isinstance(bench, DataBench):
        return {"shuffled rows": _rows(bench)}
    assert config
    if isinstance(bench, TrainBench):
        return {"a step": _step(bench, config, stored)}
    if isinstance(bench, ServeBench):
        engine, requests = serve.ready(bench)
        return {"the mix": lambda: _answered(engine, requests)}
    params, config = stored_as(bench.model, stored)
    if isinstance(bench, PrefillBench):
        options = EngineConfig(1, positions=bench.tokens + 1, chunk=bench.chunk, prefix_bytes=0)
        engine = _warm(Engine(params, config, None, options))
        asked = prompts(config, 1, bench.tokens)
        return {f"{bench.tokens} tokens": lambda: _drawn(engine, asked, 1)}
    return {name_of(n): drawing(bench, params, config, n) for n in bench.slots}


def _answered(engine: Engine, requests: Sequence[Request]) -> float:
    """Seconds to answer them all, none of whose prompts was read before."""
    engine.prefix.clear()
    return timed(lambda: engine.run(requests) and None)


def timed(run: Callable[[], Any]) -> float:
    """Seconds of a call, its arrays waited for."""
    begin = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begin


def _step(bench: TrainBench, model: ModelConfig, stored: str) -> Callable[[], float]:
    """The step that `gptj train` makes: float32 weights, AdamW, products as `stored` says."""
    rows, optimizer = batches(bench, model), OptimizerConfig(warmup_steps=1).for_run(1000)
    compute = StepConfig(dtype=stored, remat=bench.remat, attention=bench.attention)  # type: ignore[arg-type]
    state = new_state(jax.random.key(0), model, optimizer)

    def step() -> float:
        tokens = rows()[None]

        def run() -> Any:
            nonlocal state
            there = place(tokens, None, "batch", None)
            state, metrics = train_step(
                state, there, model=model, optimizer=optimizer, config=compute
            )
            return state, metrics

        return timed(run)

    return step


def drawing(
    bench: DecodeBench, params: Any, config: ModelConfig, slots: int
) -> Callable[[], float]:
    """The engine with every slot drawing; what reading the prompts took is taken off."""
    positions = bench.read + bench.new + 1
    options = EngineConfig(slots, positions=positions, kv_cache=bench.kv_cache, prefix_bytes=0)
    engine, asked = _warm(Engine(params, config, None, options)), prompts(config, slots, bench.read)
    return lambda: _drawn(engine, asked, bench.new + 1) - _drawn(engine, asked, 1)


def _warm(engine: Engine) -> Engine:
    engine.warm_up()
    return engine


def _drawn(engine: Engine, asked: Sequence[list[int]], new: int) -> float:
    """Seconds to draw so many tokens after each of the prompts, greedily."""
    greedy = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
    return timed(lambda: engine.run([Request(prompt, greedy) for prompt in asked]) and None)


def _load(model: str, stored: str) -> float:
    """`gptj.load`, the files not in memory before."""
    forget(weight_files(model))
    bits: Any = stored if stored in ("int8", "int4") else None
    dtype = jnp.bfloat16 if bits else jnp.dtype(stored)
    return timed(lambda: load(model, dtype=dtype, quantize=bits).params)


def read_files(model: str) -> float:
    """A plain reading of the same files, which no loading can be faster than."""
    files, buffer = weight_files(model), bytearray(16 << 20)
    forget(files)
    begin = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - begin


def forget(files: Sequence[Path]) -> None:
    """Drop files from the system's cache, where it can be told to."""
    for path in files:
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _rows(bench: DataBench) -> Callable[[], float]:
    """Batches of shuffled rows, as a training run reads them."""
    rows = TrainBatches(Mixture.open(bench.data), bench.seq, bench.batch)
    steps = iter(range(1 << 62))

    def run() -> float:
        begin = time.perf_counter()
        for _ in range(bench.rows // bench.batch):
            rows.batch(next(steps))
        return time.perf_counter() - begin

    return run
