"""What a step's measurements become as a row of metrics: rates, shares, and where time went."""

from __future__ import annotations

import collections
import contextlib
import math
import time
from collections.abc import Iterator

import jax
import numpy as np

from gptj.config import ModelConfig
from gptj.flops import flops_per_token, forward_flops_per_token, hardware_flops_per_token
from gptj.hardware import peak_flops
from gptj.train.noise import NoiseScale
from gptj.train.objective import StepConfig
from gptj.train.sinks import Row
from gptj.train.step import StepMetrics

KINDS = ("compile", "data", "step", "evaluate", "checkpoint", "lost")
"""What a run's time goes into. `data` is waiting for rows; `lost` is what was done after the last
checkpoint before a stop or a rewind, and had to be done again."""

LAPS = 100
"""Steps that the percentiles of the step time are of."""


class Stopwatch:
    """Counts a run's seconds, over all its restarts, as one of `KINDS` at any time."""

    def __init__(self, before: Row, lost: float = 0.0) -> None:
        self._seconds = {kind: before.get(f"seconds_{kind}", 0.0) for kind in KINDS}
        self._seconds["lost"] += lost
        self._kind, self._since = "step", time.perf_counter()

    def switch(self, kind: str) -> str:
        """From now on, time goes into `kind`; returns what it went into."""
        now, before = time.perf_counter(), self._kind
        self._seconds[before] += now - self._since
        self._kind, self._since = kind, now
        return before

    @contextlib.contextmanager
    def on(self, kind: str) -> Iterator[None]:
        """Within the context, time goes into `kind`."""
        before = self.switch(kind)
        try:
            yield
        finally:
            self.switch(before)

    def row(self) -> Row:
        """The seconds so far."""
        self.switch(self._kind)
        return {f"seconds_{kind}": round(value, 3) for kind, value in self._seconds.items()}


class Laps:
    """Times steps, leaving out the first, which compiles, and whatever `pause` is called after."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._seconds, self._count = 0.0, 0
        self._last: collections.deque[float] = collections.deque(maxlen=LAPS)

    def lap(self) -> float | None:
        """Seconds since the last lap, if nothing but a step happened in between."""
        now = time.perf_counter()
        seconds = None if self._since is None else now - self._since
        if seconds is not None:
            self._last.append(seconds)
            self._seconds, self._count = self._seconds + seconds, self._count + 1
        self._since = now
        return seconds

    def pause(self) -> None:
        """Something other than a step took time: the next lap starts now."""
        self._since = time.perf_counter() if self._since is not None else None

    def percentiles(self) -> Row:
        """The median and the 95th percentile of the last steps' seconds, once there are any."""
        if not self._last:
            return {}
        half, most = np.percentile(self._last, (50, 95))
        return {"step_seconds_p50": float(half), "step_seconds_p95": float(most)}

    def rate(self, amount: float) -> float | None:
        """`amount` a lap, as an amount a second over all laps."""
        return amount * self._count / self._seconds if self._count else None


class Meter:
    """Makes a run's rows of metrics, in the order of its steps."""

    def __init__(
        self,
        model: ModelConfig,
        compute: StepConfig,
        seq: int,
        batch: int,
        accumulate: int,
        before: Row,
        lost: float = 0.0,
    ) -> None:
        """Go on after the row `before`, empty for a new run, `lost` seconds of work thrown away."""
        self.tokens = batch * seq * (2 if compute.pairs else 1)
        self.laps, self.watch = Laps(), Stopwatch(before, lost)
        # Pairs are read once more by the reference, and once more than need be by the model.
        again = forward_flops_per_token(model, seq // 2) if compute.pairs else 0
        self._flops = self.tokens * (flops_per_token(model, seq, compute.lora) + again)
        self._hardware_flops = self.tokens * (
            hardware_flops_per_token(model, seq, compute.remat, compute.lora) + 2 * again
        )
        self._peak = peak_flops()
        self._noise = NoiseScale(batch // accumulate, batch, before)
        self._skipped = before.get("skipped", 0)

    def row(self, step: int, metrics: StepMetrics) -> Row:
        """The row of the step whose end makes the updates `step`, once it has run."""
        measured = {k: v for k, v in vars(metrics).items() if k != "row_losses"}
        found = {name: float(value) for name, value in measured.items() if value is not None}
        square, spike = found.pop("grad_square_micro"), found.pop("streak") > 0
        self._skipped += spike
        row = {"step": step, **found, "tokens": step * self.tokens}
        if spike:
            row["skipped_step"] = 1
        elif math.isfinite(square):
            row |= self._noise.row(square, found["grad_norm"] ** 2)
        if self._skipped:
            row["skipped"] = self._skipped
        seconds = self.laps.lap()
        if seconds is not None:
            row |= self._rates(seconds) | self.laps.percentiles()
        row |= device_memory() | self.watch.row()
        return {name: float(f"{value:.8g}") for name, value in row.items()}

    def _rates(self, seconds: float) -> Row:
        rate = self._flops / seconds
        return {
            "step_seconds": seconds,
            "tokens_per_second": self.tokens / seconds,
            "flops_per_second": rate,
            "mfu": rate / self._peak,
            "hfu": self._hardware_flops / seconds / self._peak,
        }


def device_memory() -> Row:
    """Bytes in use on the first device, where it counts them."""
    found = jax.local_devices()[0].memory_stats() or {}
    return {"memory_bytes": found["bytes_in_use"]} if "bytes_in_use" in found else {}
