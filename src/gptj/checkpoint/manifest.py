"""What makes a folder a checkpoint: a list of its files with their sizes and hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptj.checkpoint import storage
from gptj.errors import UserError

FOLDER, ELSEWHERE = "checkpoints", "checkpoints.json"
"""Where in a run's folder its checkpoints lie, and what says so if they lie elsewhere."""

COURSE, DATA = "run.json", "data.json"
"""What a run's folder says of its course, and of where things were."""

MANIFEST, FORMAT = "manifest.json", 1

COMMITTED = "commit_success.txt"

WRITTEN_AFTER = {"_CHECKPOINT_METADATA", COMMITTED}
"""Orbax's notes of the commit, made after our manifest and not needed to restore."""

_NOTE = "hashes.process_{}.json"
"""What one process found of the files it wrote, until it is part of the manifest."""


class CheckpointError(UserError):
    """A checkpoint could not be written, or what is on disk is not one that can be read."""


@dataclass(frozen=True)
class Verified:
    """What was found when every file of a checkpoint was read."""

    path: Path
    step: int | None
    """The step its name says."""
    bytes: int
    """The size of all files, as they should be."""
    problem: str | None
    """What is wrong with it in a sentence; `None` if nothing is."""


def verified(place: str | Path) -> Iterator[Verified]:
    """Read every checkpoint of a run, or the one that `place` is, oldest first.

    One that disappears meanwhile, as its run has newer ones, is passed over.

    Raises:
      UserError: there is none at `place`.
    """
    for path in _checkpoints(storage.at(place) if storage.is_remote(place) else Path(place)):
        problem, size = None, 0
        try:
            size = sum(entry["bytes"] for entry in read(path)["files"].values())
            verify(path)
        except CheckpointError as error:
            problem = str(error)
        if path.exists():
            yield Verified(path, step_of(path) if path.name.isdigit() else None, size, problem)


def _checkpoints(place: Path) -> list[Path]:
    """What is, or looks like, a checkpoint at `place`; also what lacks its manifest."""
    if not place.is_dir():
        raise UserError(f"no checkpoint at {place}: give a run's folder, or one checkpoint's")
    if (place / MANIFEST).exists() or place.name.isdigit():
        return [place]
    inner = of_run(place)
    named = (inner if inner.is_dir() else place).glob("[0-9]*")
    found = sorted(path for path in named if path.name.isdigit())
    if not found:
        raise UserError(
            f"{place} holds no checkpoint: give a run that has saved one, or a checkpoint's folder"
        )
    return found


def verify(path: Path) -> None:
    """Compare every file of a checkpoint with the size and hash its manifest has.

    Raises:
      CheckpointError: there is no complete checkpoint at `path`; names the file at fault.
    """
    manifest = read(path)
    check_sizes(path, manifest)
    if found := changed(path, manifest, manifest["files"]):
        raise CheckpointError(not_what_was_written(path, found))


def metadata(path: Path) -> dict[str, Any]:
    """What was saved beside the arrays.

    Raises:
      CheckpointError: there is no complete checkpoint at `path`.
    """
    saved: dict[str, Any] = read(path)["metadata"]
    return saved


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest: `files`, each with `bytes` and `sha256`, and `metadata`.

    Raises:
      CheckpointError: there is no complete checkpoint at `path`.
    """
    if not (path / MANIFEST).is_file():
        raise CheckpointError(
            f"{path} is not a complete checkpoint: it has no {MANIFEST}. Choose another"
        )
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        if (found := manifest["format"]) == FORMAT:
            for entry in manifest["files"].values():
                entry["bytes"], entry["sha256"]
            manifest["metadata"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path / MANIFEST} is damaged ({type(error).__name__}: {error}). Delete {path} and "
            "run again to go on from the checkpoint before it"
        ) from error
    if found != FORMAT:
        raise CheckpointError(
            f"{path / MANIFEST} has format {found}, this reads {FORMAT}: use the version of gptj "
            "that wrote it"
        )
    return manifest


def check_sizes(path: Path, manifest: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks a file or a part of one; this reads none of them."""
    for name, entry in manifest["files"].items():
        size = storage.size(path / name)
        if size != entry["bytes"]:
            state = "is missing" if size is None else f"has {size} of {entry['bytes']} bytes"
            raise CheckpointError(
                f"checkpoint {path} is damaged: {name} {state}. Delete that folder and run again "
                "to go on from the checkpoint before it"
            )


def changed(path: Path, manifest: dict[str, Any], names: Iterable[str]) -> str | None:
    """The first of the files `names` that is not what was written, after reading all of them."""
    names = list(names)

    def differs(name: str) -> bool:
        try:
            return _sha256(path / name) != manifest["files"][name]["sha256"]
        except OSError:
            return True

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        found = zip(names, pool.map(differs, names), strict=True)
        return next((name for name, differs in found if differs), None)


def not_what_was_written(path: Path, name: str) -> str:
    """The sentence about a file whose bytes have changed."""
    return (
        f"checkpoint {path} is damaged: {name} is not what was written. Delete that folder and "
        "run again to go on from the checkpoint before it"
    )


def note_written(path: Path, process: int) -> None:
    """Hash what this process wrote, so that no other has to read it again for the manifest."""
    storage.refresh(path)
    own = _entries(path, storage.files(path / f"ocdbt.process_{process}"))
    (path / _NOTE.format(process)).write_text(json.dumps(own))


def write(path: Path, saved: dict[str, Any]) -> None:
    """List every file under `path` with its size and sha256, beside the caller's `saved`."""
    storage.refresh(path)
    files: dict[str, Any] = {}
    for note in path.glob(_NOTE.format("*")):
        files |= json.loads(note.read_text())
        note.unlink()
    storage.refresh(path)
    left = [file for file in storage.files(path) if str(file.relative_to(path)) not in files]
    files |= _entries(path, left)
    with (path / MANIFEST).open("w") as out:
        ordered = dict(sorted(files.items()))
        json.dump({"format": FORMAT, "metadata": saved, "files": ordered}, out, indent=1)
        out.flush()
        if not storage.is_remote(path):
            os.fsync(out.fileno())


def _entries(path: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    return {
        str(file.relative_to(path)): {"bytes": storage.size(file), "sha256": _sha256(file)}
        for file in files
        if file.name not in WRITTEN_AFTER
    }


def of_run(run: Path) -> Path:
    """Where the checkpoints of the run in the folder `run` lie.

    Raises:
      UserError: the file that says so is damaged, or names what cannot be reached.
    """
    if not (run / ELSEWHERE).is_file():
        return run / FOLDER
    try:
        return storage.at(json.loads((run / ELSEWHERE).read_text())["folder"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{run / ELSEWHERE} is damaged, and it says where the run's checkpoints are: write "
            'it again as {"folder": "gs://..."}'
        ) from error


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints under `folder`, oldest first."""
    storage.refresh(folder)
    found = (path.parent for path in folder.glob(f"[0-9]*/{MANIFEST}"))
    return sorted((path for path in found if is_complete(path)), key=step_of)


def is_complete(path: Path) -> bool:
    """Whether `path` is a whole checkpoint with a number for a name.

    In a bucket nothing can be renamed: there Orbax writes under the final name, and a note last.
    """
    named = path.name.isdigit() and (path / MANIFEST).is_file()
    return named and (not storage.is_remote(path) or (path / COMMITTED).is_file())


def step_of(path: Path) -> int:
    """The step a checkpoint made by `Saver` was saved at."""
    return int(path.name)


def path_of(folder: Path, step: int) -> Path:
    """Where under `folder` the checkpoint of `step` is, or would be."""
    return folder / f"{step:08d}"


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
