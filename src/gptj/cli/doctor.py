"""The verb about the installation: `gptj doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gptj.cli.flags import parse
from gptj.doctor import examine
from gptj.doctor.finding import Finding

MARKS = {"good": "", "note": "[yellow]note[/]", "broken": "[red]broken[/]"}


@dataclass(frozen=True)
class DoctorCommand:
    """Say what is here and what is missing, and what to do about it.

    It looks at versions, devices, native programs, memory, disk, extras, and what the environment
    sets. It computes and downloads nothing. It exits with 0, or with 1 where something is broken
    that every run needs.
    """

    json: bool = False
    """Print it as JSON, for programs and for reports of faults."""


def run_doctor(args: Sequence[str]) -> int:
    """Run `gptj doctor`."""
    command = parse(DoctorCommand, "doctor", args, "gptj doctor --json")
    found = list(examine(Path.cwd()))
    broken = [each for each in found if each.state == "broken"]
    if command.json:
        said = {"broken": len(broken), "found": [asdict(each) for each in found]}
        print(json.dumps(said, indent=2))
    else:
        show(found, Console())
    return 1 if broken else 0


def show(found: Iterable[Finding], console: Console) -> None:
    """A table, its parts apart, and each remedy under what it mends."""
    table = Table(box=None, pad_edge=False)
    for title in ("", "", "", "found"):
        table.add_column(title, overflow="fold")
    before = ""
    for each in found:
        if before and each.part != before:
            table.add_section()
        remedy = f"\n[bold]{_plain(each.remedy)}[/]" if each.remedy else ""
        part = each.part if each.part != before else ""
        table.add_row(part, each.what, MARKS[each.state], _plain(each.found) + remedy)
        before = each.part
    console.print(table)


def _plain(text: str) -> str:
    """Text in which brackets are brackets."""
    return text.replace("[", r"\[")
