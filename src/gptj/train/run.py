"""A run's folder: what it was started with, and what must not change when it goes on.

RUN/model.json        the model's shape
RUN/tokenizer.json    its tokenizer
RUN/run.json          what decides the run's course: data, batch, optimizer, seed, ...
RUN/data.json         where the data were when it was last started
RUN/metrics.jsonl     a row of numbers a step
RUN/events.jsonl      what happened: starts, stops, skipped steps
RUN/samples.jsonl     what the model wrote at evaluations, if asked to
RUN/skips.json        batches passed over after going back to a checkpoint, if any
RUN/checkpoints/N/    the state after step N
RUN/checkpoints.json  where the checkpoints are instead, if they are elsewhere
RUN/profile/          a trace of some steps, if asked for
RUN/tensorboard/      the curves once more, for TensorBoard
RUN/lock              that one process at a time trains here
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptj import checkpoint
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.files import alone
from gptj.hosts import barrier, is_leader
from gptj.tokenizer import Tokenizer

MODEL, TOKENIZER, LOCK = "model.json", "tokenizer.json", "lock"


@contextlib.contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Hold the run's folder, so that no second process trains in it at the same time.

    Of many hosts host 0 holds it for all.

    Raises:
      UserError: another process holds it.
    """
    if not is_leader():
        yield
        return
    with alone(run / LOCK, f"another process is training in {run}"):
        yield


def begin(
    run: Path,
    model: ModelConfig,
    tokenizer: Tokenizer,
    course: dict[str, Any],
    data: Path,
    checkpoints: str | None = None,
    *,
    begun_from: str | None = None,
    allow_data_change: bool = False,
) -> None:
    """Make the run's folder, or find that it is this very run's.

    Until its first checkpoint a run has nothing to lose, and may be started anew in any way.

    Args:
      course: everything that decides the weights a run ends with, as JSON values.
      data: where the data lie now, for those who want to look at them.
      begun_from: the model that it began from, for those who read adapters.
      checkpoints: the folder or URL they go to, if not the run's folder.
      allow_data_change: go on although the course's `data` is another, and note it.

    Raises:
      UserError: the folder cannot be written, or holds something else, or a run on another
        course; says which key.
    """
    course = json.loads(json.dumps({"model": dataclasses.asdict(model), **course}))
    places = {"path": str(data.absolute())}
    if begun_from is not None:
        local = Path(begun_from)
        places["from"] = str(local.absolute()) if local.exists() else begun_from
    if is_leader():
        _begin(run, model, tokenizer, course, places, checkpoints, allow_data_change)
    barrier("the run has begun")
    if not (run / checkpoint.COURSE).is_file():
        raise UserError(
            f"{run} on this host is not the folder that host 0 began the run in: choose a folder "
            "that all hosts share"
        )


def _begin(
    run: Path,
    model: ModelConfig,
    tokenizer: Tokenizer,
    course: dict[str, Any],
    places: dict[str, str],
    checkpoints: str | None,
    allow_data_change: bool,
) -> None:
    known = (run / checkpoint.COURSE).is_file()
    goes_on = known and checkpoint.complete(checkpoint.of_run(run))
    if goes_on:
        _check_same(run, course, allow_data_change)
        _check_place(run, checkpoints)
    elif not known and run.is_dir() and {path.name for path in run.iterdir()} - {LOCK}:
        raise UserError(f"{run} is not empty and holds no run: choose another folder for the run")
    texts = {
        # First: it marks the folder as a run.
        run / checkpoint.COURSE: json.dumps(course, indent=2) + "\n",
        run / checkpoint.DATA: json.dumps(places) + "\n",
    }
    if goes_on and all(path.is_file() and path.read_text() == t for path, t in texts.items()):
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        with exclusive(run):
            for path, text in texts.items():
                _write(path, text)
            if not goes_on:
                _note_place(run, checkpoints)
                model.save(run / MODEL)
                tokenizer.save(run / TOKENIZER)
    except OSError as error:
        raise UserError(
            f"the run's folder {run} cannot be written ({error.strerror}): free space, or choose "
            "another folder for the run"
        ) from error


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        unfinished.write_text(text)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)  # a folder with nothing else in it can begin again
        raise


def _note_place(run: Path, checkpoints: str | None) -> None:
    """Remember where a new run's checkpoints go; what it was told before stands.

    Raises:
      UserError: it cannot be reached, or there are some of another run.
    """
    if checkpoints is None:
        return
    if checkpoint.complete(checkpoint.at(checkpoints)):
        raise UserError(f"checkpoints={checkpoints} holds another run's: choose another place")
    place = json.dumps({"folder": str(checkpoint.at(checkpoints))})
    _write(run / checkpoint.ELSEWHERE, place + "\n")


def _check_place(run: Path, checkpoints: str | None) -> None:
    """Refuse another place for the checkpoints than where the run has them."""
    has = checkpoint.of_run(run)
    if checkpoints is not None and checkpoint.at(checkpoints) != checkpoint.at(has):
        raise UserError(
            f"{run} has its checkpoints at {has}, not at checkpoints={checkpoints}: leave that "
            "out to go on with the run, or choose another folder for a new one"
        )


def _check_same(run: Path, course: dict[str, Any], allow_data_change: bool) -> None:
    try:
        before, after = _flat(json.loads((run / checkpoint.COURSE).read_text())), _flat(course)
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{run / checkpoint.COURSE} is damaged, so this run cannot go on: copy the run's "
            "folder again, or choose another folder for a new one"
        ) from error
    for key in [*before, *after]:
        if key == "data" and before.get(key) != after[key]:
            if allow_data_change:
                continue
            raise UserError(
                f"the data are not those that {run} was started with (fingerprint "
                f"{after[key][:12]}, then {str(before.get(key))[:12]}): use those, or "
                "--allow-data-change to go on with these"
            )
        if not before.get(key) and not after.get(key):
            continue  # an option that was not there yet, and is not used
        if key == "base" and before.get(key) != after.get(key):
            raise UserError(
                f"{run} trained its adapters beside another model than lies at from="
                f"{after.get('from')} now, or an earlier version marked it otherwise: use that "
                "model to go on with that run, or another folder for a new one"
            )
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
