"""The other process, which compiles: libtpu writes to the terminal and takes signals for itself.

It reads one request as JSON and writes one answer.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from gptj.errors import UserError


def step(request: dict[str, Any]) -> dict[str, Any]:
    """Compile a training step."""
    from gptj.plan.compiled import compile_step
    from gptj.plan.job import Job

    found = compile_step(Job.of(request["job"]))
    return {"kind": type(found).__name__, "facts": dataclasses.asdict(found)}


def decode(request: dict[str, Any]) -> dict[str, Any]:
    """Compile the engine's step that draws a token for every slot."""
    from gptj.plan.compiled_decode import compile_decode
    from gptj.plan.serve import ServeJob

    found = compile_decode(ServeJob.of(request["job"]))
    return {"kind": type(found).__name__, "facts": dataclasses.asdict(found)}


def rates(request: dict[str, Any]) -> dict[str, Any]:
    """How fast the axes of some meshes exchange."""
    from gptj.plan.compiled import axis_rates
    from gptj.plan.place import find

    place = find(request["place"])
    return {"rates": [axis_rates(tuple(mesh), place) for mesh in request["meshes"]]}


CAN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "step": step, "decode": decode, "rates": rates,
}  # fmt: skip


def main() -> None:
    """Answer on what is standard output now; whatever else is printed goes where errors go."""
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        request = json.load(sys.stdin)
        try:
            found = CAN[request["what"]](request)
        except UserError as error:
            found = {"mistake": str(error)}
        json.dump(found, answer)


if __name__ == "__main__":
    main()
