"""What is found out about a part of the installation or the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["good", "note", "broken"]


@dataclass(frozen=True)
class Finding:
    """One row of the report."""

    part: str
    """What it belongs to: `versions`, `devices`, `kernels`, `memory`, `disk`, `extras`,
    `settings`."""
    what: str
    found: str
    state: State = "good"
    """`note`: something could be had that is not here. `broken`: something needed does not work."""
    remedy: str = ""
    """What to do about it."""


Check = Callable[[], Iterable[Finding]]


def told(part: str, check: Check, state: State = "broken") -> Iterator[Finding]:
    """What a check finds; where it fails, that it does, in this state, and why."""
    try:
        yield from check()
    except Exception as error:  # whatever is wrong with a machine, the rest is still told
        lines = str(error).strip().splitlines() or ["no reason given"]
        remedy = "reinstall gptj-jax in a new virtual environment" if state == "broken" else ""
        yield Finding(part, part, f"{type(error).__name__}: {lines[0]}", state, remedy)


def size(count: float) -> str:
    """Bytes, for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"
