"""What we ask of Orbax: each process writes its own shards, and hashes seal them all."""

from __future__ import annotations

import functools
import logging
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from gptj.checkpoint import manifest
from gptj.checkpoint.storage import at

CHUNK = 64 << 20
"""Bytes an array is stored in at most at once: who restores a part reads little beside it."""


class Handler(ocp.PyTreeCheckpointHandler):  # type: ignore[misc]
    """Orbax's handler of trees, which seals the folder with our manifest before the rename."""

    def __init__(self, **options: Any) -> None:
        super().__init__(use_compression=False, **options)  # weights do not compress
        self.saved: dict[str, Any] = {}
        _hush()

    async def async_save(self, directory: Any, args: Any) -> Any:
        """Copy the arrays to the host; the future returned writes them, and then reads hashes."""
        written = await super().async_save(directory, args=args)
        note = functools.partial(manifest.note_written, at(directory), jax.process_index())
        return [ocp.future.ChainedFuture(written, note)]

    def finalize(self, directory: Any) -> None:
        """Called by the first process alone, once every process has written its part."""
        super().finalize(directory)
        manifest.write(at(directory), self.saved)


@ocp.args.register_with_handler(Handler, for_save=True)
class Save(ocp.args.PyTreeSave):  # type: ignore[misc]
    """What `Handler` takes to save."""


@ocp.args.register_with_handler(Handler, for_restore=True)
class Restore(ocp.args.PyTreeRestore):  # type: ignore[misc]
    """What `Handler` takes to restore."""


def save_in_chunks(tree: Any) -> Save:
    """`tree`, to be saved in chunks that a restore onto another mesh can pick from."""
    return Save(tree, save_args=jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK), tree))


def reason(error: BaseException) -> str:
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


_LEFT_BEHIND = r"Event loop is closed|coroutine '[^']*(serialize|cancellable|CheckpointHandler)"
"""A failed write closes Orbax's event loop while the writes beside it still need it."""

_before: list[Callable[[Any], object]] = []
