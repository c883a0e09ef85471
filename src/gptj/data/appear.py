"""A folder of prepared data that appears when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gptj.data.journal import JOURNAL
from gptj.errors import UserError
from gptj.files import alone

PREPARED = "train/manifest.json"
"""What a folder of prepared data holds."""
DONE = "done"
"""Where a resumable folder has a file for each part that is done."""


def check_out(out: Path, force: bool, mark: str = PREPARED, groups: bool = False) -> None:
    """Refuse to replace what is there, unless it holds `mark` and `force` says so.

    Args:
      groups: whether it may hold several folders that hold it instead.

    Raises:
      UserError: it is something else, or not to be replaced.
    """
    with saying(out):
        if not out.exists():
            return
        against = _against(out, mark, groups)
    if not against and not force:
        raise UserError(f"{out} exists: choose another --out, or replace it with --force")
    if against and not force:
        raise UserError(f"{out} exists, and {against[0]}: choose another --out")
    if against:
        why, remedy = against
        raise UserError(f"{out} {why}, so --force does not delete it: {remedy}")


def _against(out: Path, mark: str, groups: bool) -> tuple[str, str] | None:
    """What speaks against replacing what is there, and what to do instead."""
    another = "choose another --out"
    what = "prepared data" if mark == PREPARED else "a mixture"
    marks = (mark, f"*/{mark}") if groups else (mark,)
    if not out.is_dir():
        return f"is not {what}", another
    if not any(out.iterdir()):
        return None
    if not any(_holds(out, each) for each in marks):
        return f"is not {what}", another
    if others := _others(out, mark):
        return (
            f"also holds {others[0].name}, which is not {what}",
            f"move it away, or {another}",
        )
    return None


def _others(out: Path, mark: str) -> list[Path]:
    """What lies in a folder, or in those of its groups, that `prepare` or `mix` did not write."""
    if mark != PREPARED:
        return [path for path in sorted(out.iterdir()) if path.name != mark]
    groups = [out] if _holds(out, mark) else _within(out)
    return [
        path
        for group in groups
        for path in _within(group)
        if path.name not in ("train", "heldout")
        or {each.suffix for each in path.iterdir()} - {".json", ".tokens", ".documents"}
    ]


def _holds(folder: Path, mark: str) -> bool:
    """Whether it has a file of that name, in each of its folders where `mark` begins with `*`."""
    if mark.startswith("*/"):
        return all((each / mark[2:]).is_file() for each in _within(folder))
    return (folder / mark).is_file()


def _within(folder: Path) -> list[Path]:
    """What lies in a folder, but for what an append that was interrupted left there."""
    return sorted(path for path in folder.iterdir() if path.name != JOURNAL)


@contextlib.contextmanager
def _new_parents(out: Path) -> Iterator[None]:
    """Remove the folders around `out` again that were made for it, if it comes to nothing."""
    missing = [each for each in out.absolute().parents if not each.exists()]
    try:
        yield
    except BaseException:
        for each in missing:
            with contextlib.suppress(OSError):  # something else may be in there by now
                each.rmdir()
        raise


@contextlib.contextmanager
def all_or_nothing(out: Path, force: bool, mark: str = PREPARED) -> Iterator[Path]:
    """A new folder, which becomes `out` in one rename if the block succeeds, and else vanishes."""
    with saying(out), _new_parents(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True
        ) as scratch:
            new = Path(scratch, "new")
            new.mkdir()
            yield new
            appear(new, out, force, mark)


@contextlib.contextmanager
def resumable(out: Path) -> Iterator[Path]:
    """A folder beside `out`, for what is to become it, which outlives an interruption.

    It vanishes with the block, but for one that ends early with something in `DONE`: then the
    next block finds it again, see `continuing`.

    Raises:
      UserError: another process is at it.
    """
    scratch = out.absolute().parent / f".{out.name}.partial"
    with _new_parents(out):
        with saying(out):
            scratch.mkdir(parents=True, exist_ok=True)
        with alone(scratch / "lock", f"another process is writing {out}"):
            try:
                yield scratch
            except BaseException:
                if not _has_any(scratch / DONE):
                    shutil.rmtree(scratch, ignore_errors=True)
                raise
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def continuing(out: Path, scratch: Path, key: str) -> Iterator[None]:
    """Go on with what is in a resumable folder if it is of this key, and else begin anew.

    Raises:
      UserError: the system refuses something.
    """
    mark = scratch / "key"
    try:
        if not mark.exists() or mark.read_text() != key:
            for path in scratch.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
            mark.write_text(key)
        yield
    except OSError as error:
        raise _refused(out, error, scratch if _has_any(scratch / DONE) else None) from error


def forget(scratch: Path) -> None:
    """Keep nothing of what is done in a resumable folder."""
    shutil.rmtree(scratch / DONE, ignore_errors=True)


def _has_any(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def appear(new: Path, out: Path, force: bool, mark: str = PREPARED, groups: bool = False) -> None:
    """Have a folder become `out`, in one rename and not before the disk holds all of it."""
    sync(new)
    check_out(out, force, mark, groups)
    old = new.with_name("old")
    if out.exists():
        out.rename(old)
    try:
        new.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    sync_entry(out.parent)


@contextlib.contextmanager
def saying(out: Path) -> Iterator[None]:
    """Say in a sentence what the system has against writing `out`."""
    try:
        yield
    except OSError as error:
        raise _refused(out, error) from error


def _refused(out: Path, error: OSError, kept: Path | None = None) -> UserError:
    why = f"{out} cannot be written ({error.strerror or error}) and is left as it was"
    remedy = _REMEDIES.get(error.errno or 0)
    if kept:
        first = f"{remedy}, and " if remedy else ""
        return UserError(
            f"{why}, what is done is kept in {kept}: {first}give the same command again"
        )
    return UserError(f"{why}: {remedy or 'try again'}, or choose another --out")


_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "move away the file that is in its place"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "allow yourself to write there"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n)"),
}


def sync(folder: Path) -> None:
    """Have the disk hold everything in `folder` before its name appears."""
    for path in sorted(folder.rglob("*")):
        sync_entry(path)
    sync_entry(folder)


def sync_entry(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
