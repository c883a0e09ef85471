"""What is here, what is missing, and how to get it: for people, and for reports of faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gptj.doctor import machine, packages
from gptj.doctor.finding import Finding, told


def examine(here: Path) -> Iterator[Finding]:
    """All that can be found out without computing or downloading anything.

    Args:
      here: the folder that runs would be kept in.
    """
    yield from machine.settings()  # first, as what follows may set some
    yield from told("versions", packages.versions)
    yield from told("devices", machine.devices)
    yield from told("kernels", machine.native, "note")
    yield from told("memory", machine.memory, "note")
    yield from told("disk", lambda: machine.disk(here), "note")
    yield from told("extras", packages.extras, "note")
