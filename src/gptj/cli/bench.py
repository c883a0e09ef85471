"""The verb about speed: `gptj bench train`, `decode`, `prefill`, `serve`, `load` and `data`."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from gptj.bench.config import (
    DataBench,
    DecodeBench,
    LoadBench,
    Peer,
    PrefillBench,
    ServeBench,
    TrainBench,
)
from gptj.cli.flags import MeshShape, parse
from gptj.errors import UserError

SUBJECTS: dict[str, tuple[type, str]] = {
    "train": (TrainBench, "--peer transformers"),
    "decode": (DecodeBench, "--stored bfloat16 int8 --peer transformers ctranslate2"),
    "prefill": (PrefillBench, "--tokens 256 --peer ctranslate2"),
    "serve": (ServeBench, "--model 125m --slots 16 --requests 100 --rate 2"),
    "load": (LoadBench, "my-model --peer transformers"),
    "data": (DataBench, "data/mine --seq 2048"),
}
"""What can be measured: how it is asked for, and an example."""

EXAMPLE = "gptj bench decode --stored int8 --peer ctranslate2 --plot bars.png"
USAGE = f"""\
usage: gptj bench {{{",".join(SUBJECTS)}}} [OPTIONS]

Measure the programs that users run, beside what this machine's memory and arithmetic allow and,
with --peer, beside others in the same run, in turns. Figures are medians of the turns.

  train      the training step
  decode     drawing tokens, all slots at once
  prefill    reading a prompt
  serve      a mix of requests: how soon and how fast they are answered
  load       loading a model from the disk
  data       reading shuffled rows of prepared texts

  gptj bench SUBJECT --help   its options (default: those for a small model on a CPU)

Example: {EXAMPLE}
"""


@dataclass(frozen=True)
class Outcome:
    """Beside whom, how often, and where the figures go."""

    peer: tuple[Peer, ...] = ()
    """Others that do the same work in turns: `transformers` with PyTorch, `ctranslate2`; of
    `original`, Mesh Transformer JAX, what was recorded."""
    rounds: int | None = None
    """Counted turns of each side. Default: 5. Not of `serve` without a peer."""
    json: Path | None = None
    """Also write the figures to this file, beside those of other subjects that it has."""
    plot: Path | None = None
    """Also draw them as bars against the limit, to a .png, .svg or .pdf."""


def run_bench(args: Sequence[str]) -> None:
    """Run `gptj bench`."""
    subject = args[0] if args else ""
    if subject in ("-h", "--help"):
        print(USAGE, end="")
        return
    if subject not in SUBJECTS:
        raise UserError(f"say what to measure: gptj bench {', '.join(SUBJECTS)}")
    kind, options = SUBJECTS[subject]
    command: Any = parse(
        _command(kind), f"bench {subject}", args[1:], f"gptj bench {subject} {options}"
    )
    if command.outcome.plot:
        from gptj.plot import check_picture

        check_picture(command.outcome.plot, "plot")
    if command.outcome.json:
        _known(command.outcome.json)
    said = shlex.join(["gptj", "bench", *args])
    console = Console(soft_wrap=True)
    console.width = max(console.width, 90)  # a table's names in one piece
    if subject == "serve" and not command.outcome.peer:
        _serve(command, console)
    else:
        _in_turns(subject, command, said, console)


def _command(kind: Any) -> type:
    """The flags of a subject."""
    fields: list[Any] = [
        ("bench", Annotated[kind, tyro.conf.OmitArgPrefixes], _default(kind)),
        ("outcome", Annotated[Outcome, tyro.conf.OmitArgPrefixes], field(default=Outcome())),
        ("mesh", MeshShape, field(default=MeshShape())),
    ]
    made = dataclasses.make_dataclass("Bench", fields, frozen=True)
    made.__doc__ = kind.__doc__
    return made


def _default(kind: Any) -> Any:
    needed = [each for each in dataclasses.fields(kind) if each.default is dataclasses.MISSING]
    return field() if needed else field(default_factory=kind)


def _in_turns(subject: str, command: Any, said: str, console: Console) -> None:
    from gptj.bench.run import run
    from gptj.bench.show import picture, show

    outcome, mesh = command.outcome, dataclasses.astuple(command.mesh)
    with console.status("") as status:
        result = run(
            subject,
            command.bench,
            outcome.peer,
            5 if outcome.rounds is None else outcome.rounds,
            said,
            mesh,
            status.update,
        )
    show(result, outcome.peer, console)
    if outcome.json:
        _write(outcome.json, subject, result.as_json())
    if outcome.plot:
        picture(result, outcome.plot)


def _serve(command: Any, console: Console) -> None:
    """A mix of requests, and how long each of them waited."""
    from gptj.bench.serve import report, serve

    if command.outcome.plot:
        raise UserError(f"plot={command.outcome.plot} needs a --peer to be drawn beside")
    if command.outcome.rounds is not None:
        raise UserError(f"rounds={command.outcome.rounds} needs a --peer to take turns with")
    with command.mesh.use():
        result = serve(command.bench)
    report(result, console)
    if command.outcome.json:
        asked = dataclasses.asdict(command.bench)
        figures = {"asked": asked, "measured": dataclasses.asdict(result)}
        _write(command.outcome.json, "serve", figures)


def _known(out: Path) -> dict[str, Any]:
    """What a file has of other subjects; nothing if it is not there."""
    try:
        known = json.loads(out.read_text()) if out.exists() else {}
    except ValueError:
        known = None
    if not isinstance(known, dict) or not known.keys() <= SUBJECTS.keys():
        raise UserError(f"json={out} is there and holds something else: choose another file")
    return known


def _write(out: Path, subject: str, figures: Any) -> None:
    """Put a subject's figures into a file, in place of its own that are there."""
    whole = {**_known(out), subject: figures}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(whole, indent=2, default=str) + "\n")
    except OSError as error:
        raise UserError(
            f"json={out} cannot be written ({error.strerror}): choose another file"
        ) from error
