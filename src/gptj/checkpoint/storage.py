"""Where checkpoints lie: in a folder of this machine, or in a bucket, as gs://bucket/my-run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from etils import epath
from etils.epath import backend

from gptj.errors import UserError


def at(place: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder or URL; the URL's has the methods that we use of `Path`'s.

    Raises:
      UserError: it is a URL of a kind that Orbax cannot write to.
    """
    text = os.fspath(place)
    if not is_remote(text):
        return Path(text).absolute()
    if not text.startswith("gs://"):
        kind = text.partition("://")[0]
        raise UserError(
            f"checkpoints cannot lie at {text}: Orbax writes to folders and gs:// but not to "
            f"{kind}://. Mount the bucket (mountpoint-s3, s3fs) and give its folder"
        )
    try:
        remote: Path = epath.Path(text)
        remote.exists()
    except ImportError as error:
        raise UserError(
            f"{text} cannot be reached without gcsfs: pip install gcsfs google-cloud-storage"
        ) from error
    return remote


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether it is a URL's."""
    return "://" in os.fspath(path)


def files(path: Path) -> list[Path]:
    """Every file below `path`, at any depth."""
    found: list[Path] = []
    for child in path.iterdir() if path.is_dir() else ():
        found += files(child) if child.is_dir() else [child]
    return found


def size(file: Path) -> int | None:
    """In bytes; `None` where there is no such file."""
    if not file.is_file():
        return None
    found = file.stat()
    return found.length if is_remote(file) else found.st_size  # type: ignore[attr-defined]


def remove(path: Path) -> None:
    """Delete a folder, as far as that can be done."""
    if is_remote(path):
        path.rmtree(missing_ok=True)  # type: ignore[attr-defined]
    else:
        shutil.rmtree(path, ignore_errors=True)


def refresh(path: Path) -> None:
    """Forget what is remembered of a bucket's content: others, as TensorStore, write to it too."""
    if is_remote(path):
        backend.fsspec_backend.fs(path).invalidate_cache()
