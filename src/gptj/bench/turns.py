"""Sides take turns, A B A B, each in a process of its own, so that its memory is its own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gptj.bench.config import Bench, DataBench, LoadBench
from gptj.bench.records import OURS, Figure, Limits, Side, Unavailable, Work
from gptj.config import ModelConfig
from gptj.errors import UserError

READING = "a plain reading"
"""The side that reads a model's files and does nothing with them."""

Mesh = tuple[int, int, int]
"""Of a mesh the sizes of `data`, `fsdp` and `tensor`."""

Tell = Callable[[str], None]


class Worker:
    """A side's process."""

    def __init__(self, side: Side, bench: Bench, config: ModelConfig | None, mesh: Mesh) -> None:
        self.side = side
        # A fresh interpreter: a device is not shared with what this process may have done.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, side, bench, config, mesh)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def run(self, case: str) -> tuple[float, int]:
        """Do a case's work once: seconds, and the most memory the process ever had."""
        self._send(case)
        found: tuple[float, int] = self._receive()
        return found

    def limits(self) -> Limits:
        """What this process measures of its device."""
        self._send(None)
        found: Limits = self._receive()
        return found

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        self._process.kill()

    def _send(self, case: str | None) -> None:
        with contextlib.suppress(OSError):  # if it is gone, receiving says so
            self._pipe.send(case)

    def _receive(self) -> Any:
        try:
            found = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise UserError(
                f"{self.side} ended with status {self._process.exitcode}: what it said stands "
                "above; where nothing does, the memory may not have sufficed"
            ) from None
        if isinstance(found, UserError | Unavailable):
            raise found
        return found


def measure(
    bench: Bench,
    sides: Mapping[Side, Mapping[str, Work]],
    config: ModelConfig | None,
    rounds: int,
    mesh: Mesh,
    tell: Tell,
) -> tuple[Limits, list[Figure], list[str]]:
    """So many counted turns of each side, after one that warms up; and what is left out, why.

    Args:
      sides: of each the cases, all with the same names.

    Raises:
      UserError: a side cannot do it here.
    """
    with contextlib.ExitStack() as stack:
        found = [_probed(bench, config)]
        _check(found[0], sides, bench, mesh)
        workers, left_out = [], []
        for side in sides:
            tell(f"starting {side}")
            try:
                workers.append(Worker(side, bench, config, mesh))
            except Unavailable as error:
                left_out.append(str(error))
            else:
                stack.callback(workers[-1].close)
        figures = [
            Figure(worker.side, case, work, [], 0)
            for case in next(iter(sides.values()))
            for worker in workers
            for work in [sides[worker.side][case]]
        ]
        by_side = {worker.side: worker for worker in workers}
        for turn in range(rounds + 1):
            tell(f"turn {turn} of {rounds}" if turn else "warming up")
            for n, figure in enumerate(figures):
                seconds, peak = by_side[figure.side].run(figure.case)
                if turn:
                    figure.seconds.append(seconds)
                figures[n] = dataclasses.replace(figure, peak_bytes=peak)
            if turn and found[0].device == "cpu":  # another device is not shared meanwhile
                found.append(_probed(bench, config))
    if found[0].device != "cpu":
        found.append(_probed(bench, config))
    limits = Limits.usual(found)
    count = 1 if limits.device == "cpu" else math.prod(mesh)
    return limits.of_devices(count), figures, left_out


def _probed(bench: Bench, config: ModelConfig | None) -> Limits:
    """What the device gives now, measured by a process that does nothing else."""
    with contextlib.closing(Worker(Side("limits"), bench, config, (1, 1, 1))) as probe:
        return probe.limits()


def _work(
    pipe: Connection, side: Side, bench: Bench, config: ModelConfig | None, mesh: Mesh
) -> None:
    """A side's process: make ready, then for each case that comes do it and say what it took."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the result alone is printed there
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others want the GPU's memory
    try:
        with _on(mesh):
            runs = _runs(side, bench, config)
            _forget_peak()
            pipe.send(None)
            while True:
                case = pipe.recv()
                pipe.send((runs[case](), peak_bytes()) if case else _limits())
    except (UserError, Unavailable) as error:
        pipe.send(error)
    except (EOFError, KeyboardInterrupt):
        pass


def _check(limits: Limits, sides: Iterable[Side], bench: Bench, mesh: Mesh) -> None:
    """Refuse what would compare one thing with another."""
    peers = [side for side in sides if side.system not in (OURS, READING)]
    ours = [side for side in sides if side.system == OURS]
    if math.prod(mesh) > 1 and isinstance(bench, LoadBench | DataBench):
        raise UserError("a mesh changes nothing of this: leave it out")
    if peers and math.prod(mesh) > 1:
        raise UserError(f"{peers[0].system} has one device: leave out the mesh, or the peer")
    if peers and limits.device != "cpu" and not isinstance(bench, LoadBench):
        raise UserError(
            f"{peers[0].system} would run on the CPU here, beside our {limits.device}: leave it "
            "out, or set JAX_PLATFORMS=cpu"
        )
    if len(ours) > 1 and limits.device.startswith("TPU"):
        raise UserError("a TPU belongs to one process at a time: name one type in --stored")


def _forget_peak() -> None:
    """Have the most memory counted from here on, where Linux can."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _runs(
    side: Side, bench: Bench, config: ModelConfig | None
) -> Mapping[str, Callable[[], float]]:
    if side.system == "limits":
        return {}
    if side.system == READING:
        from gptj.bench.own import read_files

        return {"from disk": lambda: read_files(getattr(bench, "model", ""))}
    if side.system == OURS:
        from gptj.bench import own

        return own.runs(bench, config, side.stored)
    from gptj.bench import peers

    return peers.runs(side.system, bench, config, side.stored)


@contextlib.contextmanager
def _on(mesh: Mesh) -> Iterator[None]:
    if mesh == (1, 1, 1):
        yield
        return
    import jax

    from gptj.sharding import make_mesh

    with jax.set_mesh(make_mesh(*mesh)):
        yield


def _limits() -> Limits:
    import jax

    from gptj import kernels
    from gptj.hardware import measured_bandwidth, measured_flops

    device = jax.local_devices()[0]
    size = 2048 if device.platform == "cpu" else 8192
    flops = {name: measured_flops(size, 0.5, name) for name in ("float32", "bfloat16")}
    if kernels.available() and device.platform == "cpu":
        flops["int8"] = max(flops["bfloat16"], _products_of_bytes(size))
    return Limits(device.device_kind, measured_bandwidth(), flops)


def _products_of_bytes(size: int) -> float:
    """Operations a second of our own program, which is what multiplies bytes on a processor."""
    import jax
    import jax.numpy as jnp

    from gptj import kernels
    from gptj.hardware import quickest

    x, matrix = jnp.ones((size, size), jnp.bfloat16), jnp.ones((size, size), jnp.int8)
    with kernels.rounding():
        product = jax.jit(lambda *parts: kernels.products(parts[0], [parts[1:]]))
        once = functools.partial(product, x, matrix, jnp.ones(size))
        return 2 * size**3 / quickest(lambda: jax.block_until_ready(once()), 0.5)


def peak_bytes() -> int:
    """The most memory that this process had: of its devices where they count it, else resident."""
    if "jax" in sys.modules:
        import jax

        counted = [(device.memory_stats() or {}) for device in jax.local_devices()]
        if found := max((stats.get("peak_bytes_in_use", 0) for stats in counted), default=0):
            return int(found)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    # Not getrusage's, which begins with that of the process this one was started by.
    return next((1024 * int(x.split()[1]) for x in lines if x.startswith("VmHWM:")), 0)
