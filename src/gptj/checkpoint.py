"""Checkpoints: written by Orbax in the background, complete or absent, restored onto any mesh.

A checkpoint is a folder that holds a tree of arrays and `manifest.json`, the size and hash of
every file. Both are written under a temporary name, and one rename makes them a checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from gptj.errors import UserError

MANIFEST = "manifest.json"

FOLDER = "checkpoints"
"""Where in a run's folder its checkpoints lie."""

_WRITTEN_AFTER = {"_CHECKPOINT_METADATA", "commit_success.txt"}
"""Orbax's notes of the commit, made after our manifest and not needed to restore."""


class CheckpointError(UserError):
    """A checkpoint could not be written, or what is on disk is not one that can be read."""


class Saver:
    """Saves one checkpoint at a time under `folder`, each named by its step, in the background.

    `save` copies the tree to host memory and returns; training goes on while it is written.
    The newest `keep` complete checkpoints stay. Use it as a context manager: leaving waits.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self.keep = folder.absolute(), keep
        self._target = self.folder
        self._handler = _Handler()
        self._writer = ocp.AsyncCheckpointer(self._handler)
        _remove_unfinished(self.folder)

    def save(self, step: int, tree: Any, metadata: dict[str, Any] | None = None) -> None:
        """Start writing `tree` as checkpoint `step`, after the one before it is done.

        Raises:
          CheckpointError: the checkpoint before this one, or this one's start, failed.
        """
        self.wait()
        if self.folder / _name(step) in complete(self.folder):
            return
        self._target, self._handler.saved = self.folder / _name(step), metadata or {}
        with self._translated():
            self._writer.save(self._target, args=_Save(tree))

    def wait(self) -> None:
        """Return once nothing is being written.

        Raises:
          CheckpointError: what was being written could not be; it names the last good one.
        """
        with self._translated():
            self._writer.wait_until_finished()
        for old in complete(self.folder)[: -self.keep]:
            (old / MANIFEST).unlink()  # first: what is half deleted must not count as complete
            shutil.rmtree(old, ignore_errors=True)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except CheckpointError:
            if error is None:
                raise
        finally:
            self._writer.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn a failed write into one sentence, and remove what it left."""
        try:
            yield
        except Exception as error:
            _remove_unfinished(self.folder)
            good = complete(self.folder)
            raise CheckpointError(
                f"checkpoint {self._target} could not be written: {_reason(error)}. Free some "
                "space (or raise the limit) and run the same command again; the last good "
                f"checkpoint is {good[-1] if good else 'none yet'}"
            ) from error


class _Handler(ocp.PyTreeCheckpointHandler):  # type: ignore[misc]
    """Orbax's handler of trees, which seals the folder with our manifest before the rename."""

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        super().__init__(use_compression=False)  # weights do not compress
        self.saved = saved or {}
        _hush()

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        write_manifest(Path(directory), self.saved)


@ocp.args.register_with_handler(_Handler, for_save=True)
class _Save(ocp.args.PyTreeSave):  # type: ignore[misc]
    """What `_Handler` takes to save."""


@ocp.args.register_with_handler(_Handler, for_restore=True)
class _Restore(ocp.args.PyTreeRestore):  # type: ignore[misc]
    """What `_Handler` takes to restore."""


def save(path: Path, tree: Any, metadata: dict[str, Any] | None = None) -> None:
    """Write one checkpoint at `path` and wait for it.

    Raises:
      CheckpointError: it could not be written.
    """
    try:
        with ocp.Checkpointer(_Handler(metadata)) as writer:
            writer.save(path.absolute(), args=_Save(tree))
    except Exception as error:
        raise CheckpointError(
            f"{path} could not be written: {_reason(error)}. Free some space and try again"
        ) from error


def restore(path: Path, like: Any) -> Any:
    """The tree saved at `path`, each array with the dtype and sharding of its leaf in `like`.

    `like` holds `jax.ShapeDtypeStruct`s and may be a part of what was saved, by name.

    Raises:
      CheckpointError: a file is missing or damaged, or the tree is of another shape.
    """
    verify(path)
    try:
        with ocp.Checkpointer(_Handler()) as reader:
            found = reader.metadata(path.absolute()).item_metadata.tree
            check_shapes(path, found, like)
            arguments = ocp.checkpoint_utils.construct_restore_args(_placed(like))
            restored = reader.restore(
                path.absolute(),
                args=_Restore(like, restore_args=arguments, partial_restore=True),
            )
        return restored
    except UserError:
        raise
    except (OSError, ValueError) as error:  # not what a lack of memory or our own bug raises
        raise CheckpointError(f"checkpoint {path} cannot be read: {_reason(error)}") from error


def metadata(path: Path) -> dict[str, Any]:
    """What was saved beside the arrays, after checking that every file has its full size.

    Raises:
      CheckpointError: there is no complete checkpoint at `path`; names the file at fault.
    """
    if not (path / MANIFEST).is_file():
        raise CheckpointError(
            f"{path} is not a complete checkpoint: it has no {MANIFEST}. Choose another"
        )
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files: dict[str, dict[str, Any]] = manifest["files"]
        saved: dict[str, Any] = manifest["metadata"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is damaged: {error}. Delete {path}") from error
    for name, entry in files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != entry["bytes"]:
            state = "is missing" if size is None else f"has {size} of {entry['bytes']} bytes"
            raise CheckpointError(
                f"checkpoint {path} is damaged: {name} {state}. Delete that folder and run again "
                "to go on from the checkpoint before it"
            )
    return saved


def verify(path: Path) -> None:
    """Compare every file of a checkpoint with the hash its manifest has.

    Raises:
      CheckpointError: there is no complete checkpoint at `path`; names the file at fault.
    """
    metadata(path)
    files = json.loads((path / MANIFEST).read_text())["files"]
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        hashes = pool.map(_sha256, [path / name for name in files])
        for (name, entry), found in zip(files.items(), hashes, strict=True):
            if found != entry["sha256"]:
                raise CheckpointError(
                    f"checkpoint {path} is damaged: {name} is not what was written. Delete that "
                    "folder and run again to go on from the checkpoint before it"
                )


def write_manifest(path: Path, saved: dict[str, Any]) -> None:
    """List every file under `path` with its size and sha256, beside the caller's `saved`."""
    files = {
        str(file.relative_to(path)): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in _WRITTEN_AFTER
    }
    with (path / MANIFEST).open("w") as out:
        json.dump({"format": 1, "metadata": saved, "files": files}, out, indent=1)
        out.flush()
        os.fsync(out.fileno())


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints under `folder`, oldest first."""
    found = (path.parent for path in folder.glob(f"[0-9]*/{MANIFEST}"))
    return sorted(path for path in found if path.name.isdigit())


def step_of(path: Path) -> int:
    """The step a checkpoint made by `Saver` was saved at."""
    return int(path.name)


def check_shapes(path: Path, found: Any, like: Any) -> None:
    """Refuse a saved tree whose arrays are not those of `like`, naming the first that differs."""
    saved = {_names(key): value for key, value in jax.tree_util.tree_leaves_with_path(found)}
    for key, leaf in jax.tree_util.tree_leaves_with_path(like):
        name = _names(key)
        there = tuple(saved[name].shape) if name in saved else None
        if there != leaf.shape:
            raise CheckpointError(
                f"checkpoint {path} is of another model: {'.'.join(name)} is "
                f"{there or 'missing'} there and {leaf.shape} here. Check the model's config"
            )


def _names(key: tuple[Any, ...]) -> tuple[str, ...]:
    """A key path as plain names, the same for dataclasses, tuples and the dicts Orbax returns."""
    return tuple(
        str(getattr(entry, "name", getattr(entry, "key", getattr(entry, "idx", ""))))
        for entry in key
    )


def _placed(like: Any) -> Any:
    """`like` with every leaf placed: on the first device where it names no sharding."""
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or single
        ),
        like,
    )


def _name(step: int) -> str:
    return f"{step:08d}"


def _remove_unfinished(folder: Path) -> None:
    """Delete what a killed or failed save left under Orbax's temporary names."""
    for path in folder.glob("[0-9]*"):
        unfinished = path.name.isdigit() and not (path / MANIFEST).is_file()
        if unfinished or ".orbax-checkpoint-tmp" in path.name:
            shutil.rmtree(path, ignore_errors=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _reason(error: BaseException) -> str:
    """The innermost cause, on one line and not longer than a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = " ".join(str(error).partition(" [tensorstore_spec=")[0].split()) or type(error).__name__
    return line if len(line) <= 200 else "..." + line[-200:]  # the system's word comes last


def _hush() -> None:
    """Keep what is raised as well from being printed too: by Orbax, and by threads it left."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_is_not_orbax)
    warnings.filterwarnings("ignore", _LEFT_BEHIND, RuntimeWarning)
    if sys.unraisablehook is not _unraisable:
        _before.append(sys.unraisablehook)
        sys.unraisablehook = _unraisable


def _is_not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.getMessage()


def _unraisable(failure: Any) -> None:
    if not re.match(_LEFT_BEHIND, str(failure.exc_value)):
        _before[-1](failure)


_LEFT_BEHIND = "Event loop is closed|coroutine 'async_serialize"
"""A failed write closes Orbax's event loop while the writes beside it still need it."""

_before: list[Callable[[Any], object]] = []
