"""What stands beside every measured figure: the command, the machine and the day."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
VERSIONS = ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "tensorstore", "torch",
            "transformers")  # fmt: skip


def write(out: Path, figures: Mapping[str, Any]) -> None:
    """Write figures; a `command` among them is more exact than the one that was typed."""
    command = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    day = datetime.date.today().isoformat()
    whole = {"command": " ".join(command), **figures, "machine": describe_machine(), "date": day}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(whole, indent=2) + "\n")
    print(f"wrote {out}")


def describe_machine() -> dict[str, object]:
    """The processor, and the versions that a figure may depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in names if "model name" in line), "")
    return {
        "processor": name or platform.processor(),
        "threads": threads(),
        "python": platform.python_version(),
        **{package: known for package in VERSIONS if (known := _version(package))},
    }


def threads() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
