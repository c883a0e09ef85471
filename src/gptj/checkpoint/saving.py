"""Saving in the background, one checkpoint at a time, and deleting what need not stay."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from gptj import hosts
from gptj.checkpoint.handler import Handler, reason, save_in_chunks
from gptj.checkpoint.keep import KeepPolicy, kept
from gptj.checkpoint.manifest import (
    MANIFEST,
    CheckpointError,
    complete,
    is_complete,
    metadata,
    path_of,
    step_of,
)
from gptj.checkpoint.storage import at, remove

SCORE = "heldout_loss"
"""What of a checkpoint's metadata says how good it is; lower is better."""

NEWEST = KeepPolicy()
"""What is kept unless something else is asked for."""


class Saver:
    """Saves one checkpoint at a time under `folder`, each named by its step, in the background.

    `save` copies the tree to host memory and returns; training goes on while it is written.
    Complete checkpoints that `keep` does not ask for are deleted when a newer one is there. Use
    it as a context manager: leaving waits. Where there are several processes, all of them make
    the same calls; each writes its own shards, and the first one does the rest.
    """

    def __init__(self, folder: Path, keep: KeepPolicy = NEWEST) -> None:
        self.folder, self.keep = at(folder), keep
        self._target = self.folder
        self._handler = Handler()
        self._writer = ocp.AsyncCheckpointer(self._handler)
        self._is_first = jax.process_index() == 0
        self._scores: dict[int, float | None] = {}
        self._remove_unfinished()
        found = complete(self.folder)
        self._newest = hosts.told(step_of(found[-1]) if found else None)  # all save, or none

    def save(self, step: int, tree: Any, metadata: dict[str, Any] | None = None) -> None:
        """Start writing `tree` as checkpoint `step`, after the one before it is done.

        Args:
          metadata: JSON values to write beside it; `SCORE` among them decides what is best.

        Raises:
          CheckpointError: the checkpoint before this one, or this one's start, failed.
        """
        self.wait()
        if step == self._newest:
            return
        self._target, self._handler.saved = path_of(self.folder, step), metadata or {}
        with self._translated():
            self._writer.save(self._target, args=save_in_chunks(tree))
        self._newest = step

    def wait(self) -> None:
        """Return once nothing is being written, and delete what need not stay.

        Raises:
          CheckpointError: what was being written could not be; it names the last good one.
        """
        with self._translated():
            self._writer.wait_until_finished()
        if self._is_first:
            found = {step_of(path): self._score(path) for path in complete(self.folder)}
            self._delete(found.keys() - kept(found, self.keep))

    def forget(self, after: int) -> None:
        """Delete every checkpoint of a later step than `after`, to go back to that one.

        Raises:
          CheckpointError: what was being written could not be; it names the last good one.
        """
        self.wait()
        self._newest = after
        if self._is_first:
            self._delete(step for path in complete(self.folder) if (step := step_of(path)) > after)

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
            self._remove_unfinished()  # again: a failed save's other writes may have gone on

    def _delete(self, steps: Iterable[int]) -> None:
        for step in steps:
            path = path_of(self.folder, step)
            (path / MANIFEST).unlink()  # first: what is half deleted must not count as complete
            remove(path)
            self._scores.pop(step, None)

    def _score(self, path: Path) -> float | None:
        """The score in a checkpoint's manifest, which is read once, and only if it matters."""
        step = step_of(path)
        if self.keep.best and step not in self._scores:
            with contextlib.suppress(CheckpointError):  # a damaged one is not among the best
                score = metadata(path).get(SCORE)
                self._scores[step] = None if score is None else float(score)
        return self._scores.get(step)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn a failed write into one sentence, and remove what it left."""
        try:
            yield
        except Exception as error:
            self._newest = None
            self._remove_unfinished()
            good = complete(self.folder)
            raise CheckpointError(
                f"checkpoint {self._target} could not be written: {reason(error)}. Free some "
                "space (or raise the limit) and run the same command again; the last good "
                f"checkpoint is {good[-1] if good else 'none yet'}"
            ) from error

    def _remove_unfinished(self) -> None:
        """Delete what a killed or failed save left under Orbax's temporary names."""
        for path in self.folder.glob("[0-9]*") if self._is_first else ():
            unfinished = path.name.isdigit() and not is_complete(path)
            if unfinished or ".orbax-checkpoint-tmp" in path.name:
                remove(path)
