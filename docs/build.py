"""Write what is made: docs/reference.md, what fits in docs/finetune.md, docs/performance.md.

make docs
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import performance
import reference

FINETUNE = Path(__file__).parent / "finetune.md"
BEGIN, END = "<!-- what fits, by docs/build.py -->", "<!-- its end -->"

GPUS = ("rtx-3070", "t4", "rtx-3090", "a100-sxm4-40gb", "h100", "h200")
"""The columns: a GPU of each size."""

ROWS = (1, 2, 4, 8, 16, 32, 64)

WAYS = {
    "all weights, AdamW": "--remat block",
    "its moments in bfloat16": "--remat block --moments bfloat16",
    "Lion, likewise": "--remat block --optimizer lion --moments bfloat16",
    "Adafactor": "--remat block --optimizer adafactor",
    "and offloading": "--remat offload --optimizer adafactor",
    "LoRA": "--remat block --lora-rank 16",
    "QLoRA, int8": "--remat block --lora-rank 16 --lora-base int8",
    "QLoRA, int4": "--remat block --lora-rank 16 --lora-base int4",
    "QLoRA, nf4": "--remat block --lora-rank 16 --lora-base nf4",
    "nf4 and offloading": "--remat offload --lora-rank 16 --lora-base nf4",
}
"""The rows: what is trained, and how `gptj plan` is told so."""


def fitting() -> str:
    """The table of what fits: for each way and GPU, how many rows are computed at a time."""
    from gptj.plan.place import find

    sizes = [find(gpu).accelerator.memory for gpu in GPUS]
    lines = [
        f"| | options | GB at 1 | {' | '.join(f'{size / 1e9:.0f}' for size in sizes)} |",
        "|---" * (3 + len(sizes)) + "|",
    ]
    for way, options in WAYS.items():
        needed = {rows: needs(options, rows) for rows in ROWS}
        most = [max((n for n in ROWS if needed[n] <= size), default="–") for size in sizes]
        cells = (way, f"`{options}`", f"{needed[1] / 1e9:.1f}", *map(str, most))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def needs(options: str, rows: int) -> float:
    """Bytes that `gptj plan` says a step of GPT-J-6B needs."""
    from gptj.cli import main

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        out = Path(folder) / "plan.json"
        asked = f"plan gpt-j-6b --on h200 --batch {rows} --accumulate 1 {options} --json {out}"
        main(asked.split())
        return float(json.loads(out.read_text())["memory"]["needed"])


def with_fitting(guide: str) -> str:
    """The guide to fine-tuning with the table between its marks."""
    before, _, rest = guide.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{fitting()}\n\n{END}{after}"


if __name__ == "__main__":
    reference.PAGE.write_text(reference.page())
    FINETUNE.write_text(with_fitting(FINETUNE.read_text()))
    performance.PAGE.write_text(performance.page())
    pages = (reference.PAGE, FINETUNE, performance.PAGE)
    print(f"wrote {', '.join(page.name for page in pages)}; start reading at README.md")
