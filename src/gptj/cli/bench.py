"""The verb about speed: `gptj bench serve`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro
from rich.console import Console

from gptj.bench import ServeBenchConfig, report, serve
from gptj.cli.flags import MeshShape, parse
from gptj.errors import UserError


@dataclass(frozen=True)
class BenchServeCommand:
    """Drive the engine with a mix of requests, and say how soon and how fast it answers."""

    bench: tyro.conf.OmitArgPrefixes[ServeBenchConfig] = field(default_factory=ServeBenchConfig)
    mesh: MeshShape = MeshShape()
    json: Path | None = None
    """Also write the figures to this file."""


def run_bench(args: Sequence[str]) -> None:
    """Run `gptj bench`."""
    if args[:1] not in (["serve"], ["-h"], ["--help"]):
        raise UserError("say what to measure: gptj bench serve")
    words = args[1:] if args[0] == "serve" else args
    example = "gptj bench serve --model 125m --slots 16 --requests 100 --rate 2"
    command = parse(BenchServeCommand, "bench serve", words, example)
    with command.mesh.use():
        result = serve(command.bench)
    report(result, Console())
    if command.json:
        figures = {"asked": asdict(command.bench), "measured": asdict(result)}
        command.json.write_text(json.dumps(figures, indent=2) + "\n")
