"""What stands beside every measured figure: the command, the machine and the day."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptj.bench.machine import describe_machine

RESULTS = Path(__file__).parent / "results"


def write(out: Path, figures: Mapping[str, Any]) -> None:
    """Write figures; a `command` among them is more exact than the one that was typed."""
    command = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    day = datetime.date.today().isoformat()
    whole = {"command": " ".join(command), **figures, "machine": describe_machine(), "date": day}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(whole, indent=2) + "\n")
    print(f"wrote {out}")
