"""A run's folder: what it was started with, and what must not change when it goes on.

RUN/model.json        the model's shape
RUN/tokenizer.json    its tokenizer
RUN/run.json          what decides the run's course: data, batch, optimizer, seed, ...
RUN/metrics.jsonl     a row of numbers a step
RUN/checkpoints/N/    the state after step N
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

MODEL, TOKENIZER, COURSE, CHECKPOINTS = "model.json", "tokenizer.json", "run.json", "checkpoints"


def begin(run: Path, model: ModelConfig, tokenizer: Tokenizer, course: dict[str, Any]) -> None:
    """Make the run's folder, or find that it is this very run's.

    Args:
      course: everything that decides the weights a run ends with, as JSON values.

    Raises:
      UserError: the folder holds something else, or a run on another course; says which key.
    """
    course = json.loads(json.dumps({"model": dataclasses.asdict(model), **course}))
    if (run / COURSE).is_file():
        _check_same(run, json.loads((run / COURSE).read_text()), course)
        return
    if run.is_dir() and any(run.iterdir()):
        raise UserError(f"{run} is not empty and holds no run: choose another folder for the run")
    run.mkdir(parents=True, exist_ok=True)
    model.save(run / MODEL)
    tokenizer.save(run / TOKENIZER)
    unfinished = run / f"{COURSE}.tmp"  # last and in one step: it marks the folder as a run
    unfinished.write_text(json.dumps(course, indent=2) + "\n")
    unfinished.replace(run / COURSE)


def _check_same(run: Path, started: dict[str, Any], now: dict[str, Any]) -> None:
    before, after = _flat(started), _flat(now)
    for key in [*before, *after]:
        if before.get(key) != after.get(key):
            raise UserError(
                f"{run} was started with {key}={before.get(key)!r}, now it is {after.get(key)!r}: "
                "use the first value to go on with that run, or another folder for a new one"
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
