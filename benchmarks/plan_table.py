"""Plan GPT-J and larger models on the hardware people have, and write the tables of the guide.

    python benchmarks/plan_table.py            all rows that benchmarks/results/plan.json lacks
    python benchmarks/plan_table.py --docs     only write the tables into docs/planning.md

Each row is one `gptj plan` command; those for TPUs compile, in half a minute to two on two cores.
The results hold what `--json` writes less the single collectives.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "plan.json"
GUIDE = ROOT / "docs" / "planning.md"
BEGIN, END = "<!-- the {}, by benchmarks/plan_table.py -->", "<!-- its end -->"

COMMANDS = (
    "gptj plan gpt-j-6b --on v3-8 --mesh tensor=8 --batch 32",
    "gptj plan gpt-j-6b --on v3-32 --mesh data=4,tensor=8",
    "gptj plan gpt-j-6b --on v3-256 --mesh data=32,tensor=8",
    "gptj plan gpt-j-6b --on v4-64 --mesh fsdp=32 --accumulate 4",
    "gptj plan gpt-j-6b --on v5e-256 --mesh data=16,fsdp=16",
    "gptj plan gpt-j-6b --on v5p-64 --mesh fsdp=32 --accumulate 4",
    "gptj plan gpt-j-6b --on v6e-16 --mesh fsdp=16 --accumulate 16",
    "gptj plan gpt-j-6b --on h200 --batch 64",
    "gptj plan gpt-j-6b --on h100:8 --mesh fsdp=8 --accumulate 16",
    "gptj plan 13b --on v3-256 --mesh fsdp=64,tensor=4",
    "gptj plan 13b --on v5p-256 --mesh data=8,fsdp=16 --accumulate 4",
    "gptj plan 20b --on v3-256 --mesh fsdp=32,tensor=8",
    "gptj plan 20b --on v5p-256 --mesh data=8,fsdp=16 --accumulate 4",
    "gptj plan 40b --on v3-256 --mesh fsdp=32,tensor=8",
    "gptj plan 40b --on v5p-256 --mesh data=4,fsdp=32 --accumulate 4",
)

SAVING = "gptj plan gpt-j-6b --on v3-256 --mesh data=32,tensor=8 --sequential"
"""Not in the table: what the guide says of the parallel block."""

WITH_XLA = tuple(command for command in COMMANDS if re.search("gpt-j-6b --on (v4|v5|v6)", command))
"""Of the table, also compiled with splash attention."""
WITH_SPLASH = tuple(f"{command} --attention splash" for command in WITH_XLA)

ALL = (*COMMANDS, SAVING, *WITH_SPLASH)


def planned(command: str) -> dict[str, Any]:
    """What a command finds, and how long it took."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        words = shlex.split(command)[1:]
        begin = time.perf_counter()
        run = [sys.executable, "-m", "gptj.cli", *words, "--json", str(out)]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
        found = json.loads(out.read_text())
    found["traffic"] = round(found["traffic"])
    exchanges = found.pop("exchanges")
    by_axes: dict[str, dict[str, float]] = {}
    for each in exchanges:
        total = by_axes.setdefault("+".join(each["axes"]), {"bytes": 0, "seconds": 0})
        total["bytes"] += each["bytes"] * each["times"]
        total["seconds"] += each["seconds"]
    return found | {"exchanged": by_axes, "wall_seconds": round(seconds, 1)}


def measure() -> None:
    """Run the commands that have no result yet; each is kept as soon as it is there."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for command in ALL:
        if command not in kept:
            print(command, flush=True)
            kept[command] = planned(command)
            ordered = {each: kept[each] for each in ALL if each in kept}
            RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")


def table(results: dict[str, Any]) -> str:
    """The commands, numbered, and a row of what each found."""
    commands = [f"{number:2}  {command}" for number, command in enumerate(COMMANDS, 1)]
    rows = [
        "| | model | on | mesh | rows | a device needs | step | tokens/s | MFU | HFU | bound |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(row(number, results[command]) for number, command in enumerate(COMMANDS, 1)),
    ]
    versions = sorted({each["versions"] for each in results.values() if each["compiled"]})
    return "\n".join(
        ["```", *commands, "```", "", *rows, "", f"Compiled with {'; '.join(versions)}."]
    )


def row(number: int, found: dict[str, Any]) -> str:
    """One command's findings."""
    job, memory, used = found["job"], found["memory"], found["utilisation"]
    mesh = [f"{a}={n}" for a, n in zip(("data", "fsdp", "tensor"), job["mesh"], strict=True)]
    ways = job["mesh"][0] * job["mesh"][1]
    needed, available = memory["needed"] / 2**30, memory["available"] / 2**30
    cells = [
        str(number),
        f"{found['parameters'] / 1e9:.3g} B",
        job["place"],
        ", ".join(word for word in mesh if not word.endswith("=1")) or "one device",
        f"{job['accumulate']} x {job['batch'] // ways // job['accumulate']}",
        f"{needed:.1f} of {available:.0f} GiB" + ("" if found["fits"] else ": **too much**"),
        f"{found['seconds']['predicted']:.3g} s",
        f"{found['tokens_per_second'] / 1e3:.3g}k",
        f"{100 * used['palm_mfu']:.0f} %",
        f"{100 * used['palm_hfu']:.0f} %",
        found["seconds"]["bound"] + ("" if found["compiled"] else " (formula)"),
    ]
    return f"| {' | '.join(cells)} |"


def attention_table(results: dict[str, Any]) -> str:
    """What splash attention changes of what a step with XLA's, the default, needs and takes."""
    rows = [
        "| row | on | attention | a device needs | reads and writes | which takes | "
        "waits for links | step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for pair in zip(WITH_XLA, WITH_SPLASH, strict=True):
        for attention, command in zip(("XLA", "splash"), pair, strict=True):
            found = results[command]
            seconds = found["seconds"]
            cells = [
                str(COMMANDS.index(pair[0]) + 1),
                found["job"]["place"],
                attention,
                f"{found['memory']['needed'] / 2**30:.2f} GiB",
                f"{found['traffic'] / 1e9:,.0f} GB",
                f"{seconds['memory']:.2f} s",
                f"{seconds['exposed']:.2f} s",
                f"{seconds['predicted']:.2f} s",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(["```", *WITH_SPLASH, "```", "", *rows])


def write_guide() -> None:
    """Put each table between its marks."""
    results = json.loads(RESULTS.read_text())
    guide = GUIDE.read_text()
    for name, written in (("table", table(results)), ("attention", attention_table(results))):
        begin = BEGIN.format(name)
        before, _, rest = guide.partition(begin)
        _, _, after = rest.partition(END)
        guide = f"{before}{begin}\n\n{written}\n\n{END}{after}"
    GUIDE.write_text(guide)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--docs", action="store_true", help="only write the tables")
    if not parser.parse_args().docs:
        measure()
    write_guide()


if __name__ == "__main__":
    main()
