"""Checkpoints: written by Orbax in the background, complete or absent, restored onto any mesh.

A checkpoint is a folder that holds a tree of arrays and `manifest.json`, the size and hash of
every file. Both are written under a temporary name, and one rename makes them a checkpoint.

saving.py     writes them, and deletes those a `KeepPolicy` does not keep
restoring.py  reads them onto the mesh that is set
manifest.py   what makes one complete, and whether it is still what was written
keep.py       which stay
handler.py    all that we ask of Orbax
storage.py    folders, and buckets
"""

from gptj.checkpoint.keep import KeepPolicy, kept
from gptj.checkpoint.manifest import (
    COURSE,
    DATA,
    ELSEWHERE,
    FOLDER,
    MANIFEST,
    WRITTEN_AFTER,
    CheckpointError,
    Verified,
    complete,
    metadata,
    of_run,
    path_of,
    step_of,
    verified,
    verify,
)
from gptj.checkpoint.restoring import restore
from gptj.checkpoint.saving import SCORE, Saver
from gptj.checkpoint.storage import at

__all__ = [
    "COURSE",
    "DATA",
    "ELSEWHERE",
    "FOLDER",
    "MANIFEST",
    "SCORE",
    "WRITTEN_AFTER",
    "CheckpointError",
    "KeepPolicy",
    "Saver",
    "Verified",
    "at",
    "complete",
    "kept",
    "metadata",
    "of_run",
    "path_of",
    "restore",
    "step_of",
    "verified",
    "verify",
]
