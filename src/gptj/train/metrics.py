"""Where a run's numbers go: `metrics.jsonl`, which is the record, and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from gptj.errors import UserError

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"

_FLUSH_SECONDS = 10.0

Row = dict[str, float]
"""Numbers by name, among them `step`: the updates done when they were measured."""


def read_metrics(run: Path) -> list[Row]:
    """The rows of a run's `metrics.jsonl`, oldest first, without a line cut short by a crash.

    Raises:
      UserError: a line before the last is not a row of numbers.
    """
    path = run / METRICS
    lines = path.read_bytes().splitlines() if path.is_file() else []
    rows = [_row(line) for line in lines]
    if rows and rows[-1] is None:
        rows.pop()  # its step was not saved, and runs again
    if None in rows:
        raise UserError(f"{path}:{rows.index(None) + 1} is not a row of numbers: delete that line")
    return [row for row in rows if row]


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    numbers = isinstance(row, dict) and all(isinstance(x, int | float) for x in row.values())
    return row if numbers and "step" in row else None


class MetricsLog:
    """Appends rows to a run's record.

    Opened at step N, it first drops rows past N, which a run resumed from checkpoint N measures
    again.

    Raises:
      UserError: the disk is full, or the folder cannot be written; so does `write`.
    """

    def __init__(self, run: Path, step: int) -> None:
        # Slow to import, and only training writes. Not its SummaryWriter: that one writes in a
        # thread, which a full disk ends, and training would then wait for it forever.
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        kept = [row for row in read_metrics(run) if row["step"] <= step]
        self._run, self._flushed = run, time.monotonic()
        with self._translated():
            unfinished = run / f"{METRICS}.tmp"
            unfinished.write_text("".join(json.dumps(row) + "\n" for row in kept))
            unfinished.replace(run / METRICS)
            (run / TENSORBOARD).mkdir(exist_ok=True)
            name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
            self._board = RecordWriter(str(run / TENSORBOARD / name))
            self._file = (run / METRICS).open("a", buffering=1)
            version = Event(wall_time=time.time(), file_version="brain.Event:2")
            begin = SessionLog(status=SessionLog.START)  # hides what it showed past N before
            for event in (version, Event(step=step + 1, session_log=begin)):
                self._board.write(event.SerializeToString())

    def write(self, row: Row) -> None:
        """Add one row to both."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name != "step"
        ]
        event = Event(wall_time=time.time(), step=int(row["step"]), summary=Summary(value=values))
        with self._translated():
            self._file.write(json.dumps(row) + "\n")
            self._board.write(event.SerializeToString())
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._board.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close both."""
        for file in (self._file, self._board):
            with contextlib.suppress(OSError):  # a full disk, of which `write` told
                file.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the metrics of {self._run} could not be written ({error.strerror}): free some "
                "space and run the same command again; it goes on from the last checkpoint"
            ) from error
