"""The processors that this process may run on."""

from __future__ import annotations

import os


def usable() -> int:
    """How many there are; one at least."""
    mine = getattr(os, "sched_getaffinity", None)
    return len(mine(0)) if mine else os.cpu_count() or 1
