"""Programs that draw a run's curves as it trains: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

import hashlib
import importlib
import json
import socket
import time
from pathlib import Path
from typing import Literal, Protocol

from gptj.checkpoint import COURSE
from gptj.errors import UserError

Sink = Literal["tensorboard", "wandb", "trackio"]

TENSORBOARD = "tensorboard"

_FLUSH_SECONDS = 10.0

Row = dict[str, float]
"""Numbers by name, among them `step`: the updates done when they were measured."""


class OpenSink(Protocol):
    """Something that takes rows."""

    def write(self, row: Row) -> None:
        """Take one row."""

    def close(self) -> None:
        """Flush and close."""


def open_sink(name: Sink, run: Path, step: int) -> OpenSink:
    """The sink called `name` for a run that goes on after `step`.

    Raises:
      UserError: its library is not installed.
    """
    return TensorBoard(run, step) if name == "tensorboard" else Tracker(name, run)


class TensorBoard:
    """Writes event files to RUN/tensorboard."""

    def __init__(self, run: Path, step: int) -> None:
        # Slow to import, and only training writes. Not its SummaryWriter: that one writes in a
        # thread, which a full disk ends, and training would then wait for it forever.
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        (run / TENSORBOARD).mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._board, self._flushed = RecordWriter(str(run / TENSORBOARD / name)), time.monotonic()
        version = Event(wall_time=time.time(), file_version="brain.Event:2")
        begin = SessionLog(status=SessionLog.START)  # hides what it showed past `step` before
        for event in (version, Event(step=step + 1, session_log=begin)):
            self._board.write(event.SerializeToString())

    def write(self, row: Row) -> None:
        """Add one event; events reach the disk every few seconds."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name != "step"
        ]
        event = Event(wall_time=time.time(), step=int(row["step"]), summary=Summary(value=values))
        self._board.write(event.SerializeToString())
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._board.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close the file."""
        self._board.close()


class Tracker:
    """Sends rows to Weights & Biases, or to trackio, which has the same functions."""

    def __init__(self, name: str, run: Path) -> None:
        try:
            library = importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"log_to={name} needs its library: `pip install {name}`, or leave it out"
            ) from error
        options = {"project": "gptj", "name": run.resolve().name, "resume": "allow"}
        if name == "wandb":  # what it knows a resumed run by
            options["id"] = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
        self._run = library.init(**options, config=json.loads((run / COURSE).read_text()))

    def write(self, row: Row) -> None:
        """Send one row."""
        values = {name: value for name, value in row.items() if name != "step"}
        self._run.log(values, step=int(row["step"]))

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()
