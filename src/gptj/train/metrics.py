"""A run's record of numbers, `metrics.jsonl`, which is also passed on to what draws curves."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from gptj.errors import UserError
from gptj.train.sinks import Row, Sink, open_sink

METRICS = "metrics.jsonl"


def read_metrics(run: Path) -> list[Row]:
    """The rows of a run's `metrics.jsonl`, oldest first, without a line cut short by a crash.

    Raises:
      UserError: a line before the last is not a row of numbers.
    """
    path = run / METRICS
    lines = path.read_bytes().splitlines() if path.is_file() else []
    rows = _rows_at_once(lines) or [_row(line) for line in lines]
    if rows and rows[-1] is None:
        rows.pop()  # its step was not saved, and runs again
    if None in rows:
        raise UserError(f"{path}:{rows.index(None) + 1} is not a row of numbers: delete that line")
    return [row for row in rows if row]


def _rows_at_once(lines: list[bytes]) -> list[Row | None] | None:
    """All rows, several times faster than one by one; `None` where one of them is damaged."""
    try:
        rows = json.loads(b"[%s]" % b",".join(lines))
        kinds = {kind for row in rows for kind in map(type, row.values())}
    except (ValueError, AttributeError):
        return None
    whole = len(rows) == len(lines) and kinds <= {int, float}
    return rows if whole and all("step" in row for row in rows) else None


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

    def __init__(self, run: Path, step: int, sinks: Sequence[Sink] = ()) -> None:
        rows = read_metrics(run)
        kept = [row for row in rows if row["step"] <= step]
        self.last: Row = kept[-1] if kept else {}
        """The row to go on after; empty at the beginning."""
        self.lost = seconds(rows[-1]) - seconds(self.last) if len(rows) > len(kept) else 0.0
        """Seconds that the dropped rows took."""
        self._run = run
        with self._translated():
            unfinished = run / f"{METRICS}.tmp"
            unfinished.write_text("".join(json.dumps(row) + "\n" for row in kept))
            unfinished.replace(run / METRICS)
            self._file = (run / METRICS).open("a", buffering=1)
            self._sinks = [open_sink(name, run, step) for name in sinks]

    def write(self, row: Row) -> None:
        """Add one row."""
        with self._translated():
            self._file.write(json.dumps(row) + "\n")
            for sink in self._sinks:
                sink.write(row)

    def close(self) -> None:
        """Flush and close."""
        for close in (self._file.close, *(sink.close for sink in self._sinks)):
            with contextlib.suppress(OSError):  # a full disk, of which `write` told
                close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the metrics of {self._run} could not be written ({error.strerror}): free some "
                "space and run the same command again; it goes on from the last checkpoint"
            ) from error


def seconds(row: Row) -> float:
    """All the time that a run had taken by a row, but for what it had lost by then."""
    parts = (v for k, v in row.items() if k.startswith("seconds_") and k != "seconds_lost")
    return sum(parts)
