"""All that a run's folder tells of it, read for the report; a run of any age has some of it."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gptj.checkpoint import COURSE
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.report.curves import Series
from gptj.report.scale import Floats
from gptj.train.metrics import METRICS, read_metrics
from gptj.train.record import SAMPLES
from gptj.train.rows import EVENTS, json_rows
from gptj.train.run import MODEL
from gptj.train.sinks import Row

_SENSIBLE = 1e30  # what is larger, or no number, tells of a run that blew up, and fits no axis

GOODPUT = {
    "step": "training steps",
    "compile": "compiling",
    "data": "waiting for data",
    "evaluate": "evaluating",
    "checkpoint": "saving checkpoints",
    "lost": "thrown away and done again",
}
"""What a run's time goes into, the metrics `seconds_step` and so on, in words."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What was read. Each row of `events` and `samples` has a number `step`."""

    path: Path
    metrics: dict[str, Series]
    """By name, in order of the step, without values that are no sensible numbers."""
    steps: Floats
    """The steps of all the rows."""
    events: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    course: dict[str, Any]

    @classmethod
    def read(cls, run: Path) -> Record:
        """Read the run in the folder `run`.

        Raises:
          UserError: it has no metrics, or a file of it is damaged.
        """
        rows = _in_order(read_metrics(run))
        if not rows:
            raise UserError(f"{run} has no metrics: give the folder of a run ({METRICS} in it)")
        course = _object(run / COURSE)
        course.setdefault("model", _object(run / MODEL))
        steps = np.array([row["step"] for row in rows], float)
        return cls(
            run,
            _columns(rows, steps),
            steps,
            [row for row in json_rows(run / EVENTS) if isinstance(row.get("event"), str)],
            [row for row in json_rows(run / SAMPLES) if isinstance(row.get("text"), str)],
            course,
        )

    @property
    def step(self) -> int:
        """The last step."""
        return int(self.steps[-1])

    def last(self, name: str) -> float | None:
        """The newest value of a metric."""
        return float(self.metrics[name].values[-1]) if name in self.metrics else None

    def fact(self, name: str) -> Any:
        """The newest event's field of this name, if any event has one."""
        return next((event[name] for event in reversed(self.events) if name in event), None)

    @property
    def total(self) -> int | None:
        """The steps the run is to have, where that is known."""
        steps = self.fact("steps") or self.course.get("steps")
        return steps if isinstance(steps, int) and steps >= self.step else None

    @cached_property
    def tokens(self) -> float | None:
        """Tokens trained on."""
        known = self.last("tokens")
        batch, seq = self.course.get("batch"), self.course.get("seq")
        if known is None and isinstance(batch, int) and isinstance(seq, int):
            return float(self.step * batch * seq)
        return known

    @cached_property
    def parameters(self) -> int | None:
        """Numbers the weights hold, where the model's shape is known."""
        from gptj.model import count_parameters

        try:
            return count_parameters(ModelConfig.from_dict(self.course["model"]))
        except (UserError, TypeError):
            return None

    @cached_property
    def seconds(self) -> dict[str, float]:
        """What the time went into, the parts that took any."""
        parts = {name: self.last(f"seconds_{name}") or 0.0 for name in GOODPUT}
        return {name: value for name, value in parts.items() if value > 0}

    @property
    def state(self) -> str:
        """How the run stands, in a word or two; nothing where no event tells."""
        last = self.events[-1]["event"] if self.events else ""
        if last == "end" or self.step == self.total:
            return "finished"
        return "stopped" if last == "stop" else "under way" if last else ""


def _in_order(rows: list[Row]) -> list[Row]:
    """The rows without those that a later row goes back before: their steps were done again."""
    steps = np.array([row["step"] for row in rows], float)
    after = np.append(np.minimum.accumulate(steps[::-1])[::-1][1:], np.inf)
    return [row for row, keep in zip(rows, steps < after, strict=True) if keep]


def _columns(rows: list[Row], steps: Floats) -> dict[str, Series]:
    """Each metric's finite values. Rows with the same names are read as one block, for speed."""
    blocks: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        blocks[tuple(row)].append(index)
    names = sorted({name for block in blocks for name in block})
    values = np.full((len(names), len(rows)), np.nan)
    for block, indices in blocks.items():
        numbers = np.array([list(rows[index].values()) for index in indices], float)
        values[np.ix_([names.index(name) for name in block], indices)] = numbers.T
    found = {name: np.abs(column) < _SENSIBLE for name, column in zip(names, values, strict=True)}
    return {
        name: Series(steps[finite], column[finite])
        for (name, finite), column in zip(found.items(), values, strict=True)
        if name != "step" and finite.any()
    }


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged, it is no JSON object: copy the run's folder again")
    return found
