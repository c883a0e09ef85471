"""Write what is made: docs/reference.md, what fits in docs/finetune.md, docs/performance.md.

make docs
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import performance

REFERENCE = Path(__file__).parent / "reference.md"
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


def reference() -> str:
    """The page: what `gptj --help` and every verb's help print, and each public docstring."""
    from gptj import __all__ as names
    from gptj.cli import VERBS

    parts = [
        "# Reference",
        "Made by `make docs` from the program; a test fails when it is out of date.",
        "## The command",
        block(printed([])),
        *(part for verb in VERBS for part in helps(verb)),
        "## The Python package",
        *(entry(name) for name in names),
    ]
    return "\n\n".join(parts) + "\n"


def helps(verb: str) -> Iterator[str]:
    """What a verb's help prints; of `bench` also that of each subject."""
    from gptj.cli.bench import SUBJECTS

    yield f"### gptj {verb}\n\n{block(printed([verb]))}"
    for subject in SUBJECTS if verb == "bench" else ():
        yield f"#### gptj bench {subject}\n\n{block(printed([verb, subject]))}"


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


def printed(words: list[str]) -> str:
    """What `gptj WORDS --help` prints on a terminal of 100 columns."""
    from gptj.cli import main

    os.environ.update(COLUMNS="100", NO_COLOR="1", TERM="dumb")
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def entry(name: str) -> str:
    """A public name's signature and docstring, and for a class those of its own methods."""
    import gptj

    thing = getattr(gptj, name)
    title = f"### gptj.{name}"
    if not callable(thing):
        return f"{title}\n\n`{type(thing).__name__}` with {', '.join(f'`{key}`' for key in thing)}."
    parts = [title, block(inspect.getdoc(thing) or "")]
    for method, function in vars(thing).items() if inspect.isclass(thing) else ():
        if not method.startswith("_") and inspect.isroutine(function) and function.__doc__:
            parts.append(f"#### gptj.{name}.{method}\n\n{block(inspect.getdoc(function) or '')}")
    return "\n\n".join(parts)


def block(text: str) -> str:
    """Text as it stands."""
    return f"```text\n{text.strip()}\n```"


if __name__ == "__main__":
    REFERENCE.write_text(reference())
    FINETUNE.write_text(with_fitting(FINETUNE.read_text()))
    performance.PAGE.write_text(performance.page())
    pages = (REFERENCE, FINETUNE, performance.PAGE)
    print(f"wrote {', '.join(page.name for page in pages)}; start reading at README.md")
