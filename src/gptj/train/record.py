"""All that a run writes down as it goes: numbers, events, samples. Host 0 does, for all."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from gptj.errors import UserError
from gptj.hosts import is_leader
from gptj.train.metrics import MetricsLog
from gptj.train.rows import EVENTS, SKIPS, Skip
from gptj.train.sinks import Row, Sink

SAMPLES = "samples.jsonl"

Event = Literal["start", "resume", "skip", "rewind", "stop", "end"]


class Record:
    """A run's record from `step` on. Rows past it are dropped: they are measured again.

    Raises:
      UserError: the disk is full, or the folder cannot be written; so do the methods.
    """

    def __init__(self, run: Path, step: int, sinks: Sequence[Sink] = ()) -> None:
        self._run, self._sinks = run, sinks
        self._log: MetricsLog | None = None
        self.last: Row = {}
        """The row of metrics to go on after; empty at the beginning."""
        self.lost = 0.0
        """Seconds that the dropped rows took."""
        if is_leader():
            self._open(step)

    def write(self, row: Row) -> None:
        """Add a row of metrics."""
        if self._log:
            self._log.write(row)

    def tell(self, event: Event, step: int, text: str, **more: Any) -> None:
        """Add an event: `text` for people, `more` for programs."""
        row = {"step": step, "event": event, "time": round(time.time(), 3), "text": text, **more}
        self._append(EVENTS, row)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Add what the model wrote after a prompt."""
        self._append(SAMPLES, {"step": step, "prompt": prompt, "text": text})

    def rewind(self, step: int, skips: Sequence[Skip]) -> None:
        """Go on from `step`, having passed over some batches."""
        if self._log is None:
            return
        path = self._run / SKIPS
        unfinished = path.with_suffix(".tmp")
        with _written(path):
            unfinished.write_text(json.dumps([vars(skip) for skip in skips]))
            unfinished.replace(path)
        self._log.close()
        self._open(step)

    def _open(self, step: int) -> None:
        self._log = MetricsLog(self._run, step, self._sinks)
        self.last, self.lost = self._log.last, self._log.lost

    def close(self) -> None:
        """Flush and close."""
        if self._log:
            self._log.close()

    def _append(self, name: str, row: dict[str, Any]) -> None:
        if self._log is None:
            return
        path = self._run / name
        with _written(path), path.open("a") as file:
            file.write(json.dumps(row) + "\n")


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """What the disk refuses, in a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}): free some space and run the same "
            "command again; it goes on from the last checkpoint"
        ) from error


def surroundings() -> dict[str, Any]:
    """What a run runs on: versions, devices, mesh."""
    names = ("gptj-jax", "jax", "jaxlib", "optax", "orbax-checkpoint", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    mesh = jax.sharding.get_abstract_mesh().shape
    return {
        "versions": {"python": platform.python_version(), **versions},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "hosts": jax.process_count(),
        "mesh": " ".join(f"{axis}={size}" for axis, size in mesh.items()) or "one device",
    }
