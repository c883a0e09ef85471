"""Where a run's numbers go: `metrics.jsonl`, which is the record, and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

METRICS = "metrics.jsonl"

Row = dict[str, float]
"""Numbers by name, among them `step`: the updates done when they were measured."""


def read_metrics(run: Path) -> list[Row]:
    """The rows of a run's `metrics.jsonl`, oldest first, without a line cut short by a crash."""
    rows = []
    path = run / METRICS
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # only the last line of a killed run can be partial, and its step runs again
    return rows


class MetricsLog:
    """Appends rows to a run's record.

    Opened at step N, it first drops rows past N, which a run resumed from checkpoint N measures
    again.
    """

    def __init__(self, run: Path, step: int) -> None:
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        from tensorboardX import SummaryWriter  # slow to import, and only training writes

        unfinished = run / f"{METRICS}.tmp"
        unfinished.write_text(text)
        unfinished.replace(run / METRICS)
        self._file = (run / METRICS).open("a", buffering=1)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, row: Row) -> None:
        """Add one row to both."""
        self._file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._board.close()
