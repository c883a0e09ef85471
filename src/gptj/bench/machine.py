"""The machine that a figure was measured on, and the versions that it may depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gptj import cores

VERSIONS = (
    "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "tensorstore", "torch", "transformers",
    "ctranslate2",
)  # fmt: skip


def describe_machine() -> dict[str, object]:
    """The processor, how many threads may run, and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return {
        "processor": name or platform.processor(),
        "threads": cores.usable(),
        "python": platform.python_version(),
        **{package: known for package in VERSIONS if (known := _version(package))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
