"""The step, run on the devices that are here: what a prediction is measured against."""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np

from gptj.errors import UserError
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


def measure(job: Job) -> Measured:
    """Make a few steps on random tokens.

    Raises:
      UserError: there are not the devices for it here.
    """
    found = jax.devices()
    kind = job.place.accelerator.kind
    if job.place.platform != "cpu" and kind.lower() not in found[0].device_kind.lower():
        raise UserError(
            f"nothing can be measured for {job.place.name}: the devices here are "
            f"{len(found)} x {found[0].device_kind}; leave out measure"
        )
    draw = np.random.default_rng(0)
    shape = (job.accumulate, job.batch // job.accumulate, job.seq + 1)
    rows = draw.integers(0, job.model.vocab_size, shape, np.int32)
    with jax.set_mesh(make_mesh(*job.mesh)):
        begin = time.perf_counter()
        state = new_state(jax.random.key(0), job.model, job.optimizer)
        tokens, seconds = place(rows, None, "batch", None), []
        for _ in range(WARM + TIMED):
            start = time.perf_counter()
            state, metrics = train_step(
                state, tokens, model=job.model, optimizer=job.optimizer, config=job.compute
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
