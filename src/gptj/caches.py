"""What is kept in the user's cache folder between runs: programs that took long to compile."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax


def folder() -> Path:
    """Where it is all kept; removing it costs nothing but the time to make it again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptj"


def processor() -> str:
    """A hash of what tells processors apart that the same folder may be seen from."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_bytes().splitlines() if cpuinfo.exists() else []
    features = b"".join(sorted({line for line in lines if line[:5] == b"flags"}))
    return hashlib.sha256(platform.machine().encode() + features).hexdigest()[:16]


def keep_programs() -> None:
    """Have JAX keep the programs it compiles, unless it was told where."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(folder() / f"programs-{processor()}"))
