"""From what was asked to figures: which sides there are, their turns, and what came of them."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Sequence

from gptj.bench.config import (
    Bench,
    DataBench,
    DecodeBench,
    LoadBench,
    Peer,
    PrefillBench,
    ServeBench,
    check_context,
)
from gptj.bench.machine import describe_machine
from gptj.bench.models import shape_of
from gptj.bench.peers import SUBJECTS, TYPES
from gptj.bench.records import OURS, Result, Side
from gptj.bench.turns import READING, Mesh, Tell, measure
from gptj.bench.work import works
from gptj.errors import UserError


def run(
    subject: str,
    bench: Bench,
    peers: Sequence[Peer],
    rounds: int,
    command: str,
    mesh: Mesh = (1, 1, 1),
    tell: Tell = lambda _: None,
) -> Result:
    """Measure a subject.

    Raises:
      UserError: a peer cannot do it, or is not installed; or what the sides themselves refuse.
    """
    if rounds < 1:
        raise UserError(f"rounds={rounds} must be at least 1")
    config = None if isinstance(bench, LoadBench | DataBench) else shape_of(bench.model)
    if config and isinstance(bench, DecodeBench | PrefillBench | ServeBench):
        check_context(bench, config)
    if isinstance(bench, ServeBench) and bench.rate:
        raise UserError(f"rate={bench.rate} cannot be asked of a peer: leave it out")
    if isinstance(bench, ServeBench):
        bench = dataclasses.replace(bench, temperature=0.0)
    sides = {side: works(bench, config, side) for side in sides_of(subject, bench, peers)}
    limits, figures, left_out = measure(bench, sides, config, rounds, mesh, tell)
    return Result(
        subject=subject,
        command=command,
        asked=json.loads(json.dumps(dataclasses.asdict(bench), default=str)),
        limits=limits,
        figures=figures,
        left_out=left_out,
        machine=describe_machine(),
        date=datetime.date.today().isoformat(),
    )


def sides_of(subject: str, bench: Bench, peers: Sequence[Peer]) -> list[Side]:
    """Ours of each type, and each peer's of those that it has.

    Raises:
      UserError: a peer does no such thing, or has none of the types.
    """
    types: Sequence[str] = ("",) if isinstance(bench, DataBench) else bench.stored
    if not types:
        raise UserError("stored names no type: leave it out, or name one")
    sides = [Side(OURS, stored) for stored in types]
    for peer in peers:
        if type(bench) not in SUBJECTS[peer]:
            who = ", ".join(name for name, known in SUBJECTS.items() if type(bench) in known)
            raise UserError(
                f"peer={peer} has nothing to measure for {subject}: "
                + (f"choose of {who}" if who else "leave it out")
            )
        own = [Side(peer, stored) for stored in types if stored in TYPES.get(peer, types)]
        if not own:
            raise UserError(
                f"peer={peer} has no {' or '.join(types)}: ask for one of {', '.join(TYPES[peer])}"
            )
        sides += own if peer in TYPES else []
    return [*sides, Side(READING)] if isinstance(bench, LoadBench) else sides
