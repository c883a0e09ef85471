"""The step, run on the devices that are here: what a prediction is measured against."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from gptj.convert.load import quantised
from gptj.errors import UserError
from gptj.model import Params, init
from gptj.plan.job import Job
from gptj.sharding import make_mesh, place
from gptj.train.state import new_state
from gptj.train.step import train_step

WARM, TIMED = 2, 5
"""Steps made before the clock starts, and while it runs."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a step took."""

    devices: str
    seconds: float
    """The median of the timed steps."""
    memory: float
    """The most bytes in use on the first device; 0 where it does not count them."""
    compile_seconds: float


def check_here(job: Job) -> None:
    """Refuse a job whose devices are not here.

    Raises:
      UserError: saying which are.
    """
    found, place = jax.devices(), job.place
    kind = place.accelerator.kind if place.platform != "cpu" else "cpu"
    if kind.lower() not in found[0].device_kind.lower() or len(found) < place.devices:
        more = "leave out measure"
        if place.platform == found[0].platform == "cpu":
            more = f"set XLA_FLAGS=--xla_force_host_platform_device_count={place.devices}"
        raise UserError(
            f"nothing can be measured for {place.name}: the devices here are "
            f"{len(found)} x {found[0].device_kind}; {more}"
        )


def _base(job: Job) -> Params[jax.Array] | None:
    """Random weights to train adapters beside, if that is what the step does."""
    if not job.adapts:
        return None
    params, dtype = init(jax.random.key(1), job.model), jnp.dtype(job.compute.dtype)
    if job.compute.lora.quantize:
        return quantised(params, job.model, dtype, job.compute.lora.quantize)
    return jax.tree.map(lambda x: x.astype(dtype), params)


def measure(job: Job) -> Measured:
    """Make a few steps on random tokens.

    Raises:
      UserError: there are not the devices for it here.
    """
    check_here(job)
    found = jax.devices()
    draw = np.random.default_rng(0)
    shape = (job.accumulate, job.batch // job.accumulate, job.width)
    rows = draw.integers(0, job.model.vocab_size, shape, np.int32)
    key = jax.random.key(0)
    is_alone = math.prod(job.mesh) == 1  # and sets no mesh
    with contextlib.nullcontext() if is_alone else jax.set_mesh(make_mesh(*job.mesh)):
        begin = time.perf_counter()
        state, base = new_state(key, job.model, job.optimizer, job.compute.lora), _base(job)
        tokens, seconds = place(rows, None, "batch", None), []
        for _ in range(WARM + TIMED):
            start = time.perf_counter()
            state, metrics = train_step(
                state, tokens, base, model=job.model, optimizer=job.optimizer, config=job.step
            )
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - start)
    counted = found[0].memory_stats() or {}
    return Measured(
        devices=f"{len(found)} x {found[0].device_kind}",
        seconds=float(np.median(seconds[WARM:])),
        memory=float(counted.get("peak_bytes_in_use", 0)),
        compile_seconds=time.perf_counter() - begin - sum(seconds[1:]),
    )
