"""A folder of prepared data that appears when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gptj.errors import UserError

PREPARED = "train/manifest.json"
"""What a folder of prepared data holds."""


def check_out(out: Path, force: bool, mark: str = PREPARED) -> None:
    """Refuse to replace what is there, unless it holds `mark` and `force` says so.

    Raises:
      UserError: it is something else, or not to be replaced.
    """
    if not out.exists():
        return
    if not force:
        raise UserError(f"{out} exists: choose another --out, or replace it with --force")
    if not (out.is_dir() and any(_holds(out, each) for each in (mark, f"*/{mark}"))):
        what = "prepared data" if mark == PREPARED else "a mixture"
        raise UserError(f"{out} is not {what}, so --force does not delete it: choose another --out")


def _holds(folder: Path, mark: str) -> bool:
    """Whether it has a file of that name, in each of its folders where `mark` begins with `*`."""
    if mark.startswith("*/"):
        return all((each / mark[2:]).is_file() for each in folder.iterdir())
    return (folder / mark).is_file()


@contextlib.contextmanager
def all_or_nothing(out: Path, force: bool, mark: str = PREPARED) -> Iterator[Path]:
    """A new folder, which becomes `out` in one rename if the block succeeds, and else vanishes."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True
        ) as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            new.mkdir()
            yield new
            _sync(new)
            check_out(out, force, mark)
            if out.exists():
                out.rename(old)
            try:
                new.rename(out)
            except OSError:
                if old.exists():
                    old.rename(out)
                raise
            _sync_entry(out.parent)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}) and is left as it was: "
            "free space, or choose another --out"
        ) from error


def _sync(folder: Path) -> None:
    """Have the disk hold everything in `folder` before its name appears."""
    for path in sorted(folder.rglob("*")):
        _sync_entry(path)
    _sync_entry(folder)


def _sync_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
