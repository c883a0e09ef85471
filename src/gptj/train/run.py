"""A run's folder: what it was started with, and what must not change when it goes on.

RUN/model.json        the model's shape
RUN/tokenizer.json    its tokenizer
RUN/run.json          what decides the run's course: data, batch, optimizer, seed, ...
RUN/metrics.jsonl     a row of numbers a step
RUN/checkpoints/N/    the state after step N
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptj import checkpoint
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

MODEL, TOKENIZER, COURSE = "model.json", "tokenizer.json", "run.json"
CHECKPOINTS = checkpoint.FOLDER
LOCK = "lock"


@contextlib.contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Hold the run's folder, so that no second process trains in it at the same time.

    Raises:
      UserError: another process holds it.
    """
    with (run / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go if we die
        except BlockingIOError:
            raise UserError(
                f"another process is training in {run}: wait for it to end, or stop it"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def begin(run: Path, model: ModelConfig, tokenizer: Tokenizer, course: dict[str, Any]) -> None:
    """Make the run's folder, or find that it is this very run's.

    Until its first checkpoint a run has nothing to lose, and may be started anew in any way.

    Args:
      course: everything that decides the weights a run ends with, as JSON values.

    Raises:
      UserError: the folder cannot be written, or holds something else, or a run on another
        course; says which key.
    """
    course = json.loads(json.dumps({"model": dataclasses.asdict(model), **course}))
    known = (run / COURSE).is_file()
    if known and checkpoint.complete(run / CHECKPOINTS):
        _check_same(run, course)
        return
    if not known and run.is_dir() and {path.name for path in run.iterdir()} - {LOCK}:
        raise UserError(f"{run} is not empty and holds no run: choose another folder for the run")
    try:
        run.mkdir(parents=True, exist_ok=True)
        with exclusive(run):
            (run / COURSE).write_text(json.dumps(course, indent=2) + "\n")  # marks it as a run
            model.save(run / MODEL)
            tokenizer.save(run / TOKENIZER)
    except OSError as error:
        raise UserError(
            f"the run's folder {run} cannot be written ({error.strerror}): free space, or choose "
            "another folder for the run"
        ) from error


def _check_same(run: Path, course: dict[str, Any]) -> None:
    try:
        before, after = _flat(json.loads((run / COURSE).read_text())), _flat(course)
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{run / COURSE} is damaged, so this run cannot go on: choose another folder for a new "
            "one; the checkpoints are still good to sample from"
        ) from error
    for key in [*before, *after]:
        if before.get(key) != after.get(key):
            why = " (it follows from steps unless given)" if key.endswith("anneal_steps") else ""
            raise UserError(
                f"{run} was started with {key}={before.get(key)!r}, now it is "
                f"{after.get(key)!r}{why}: use the first value to go on with that run, or another "
                "folder for a new one"
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
