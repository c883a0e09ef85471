"""A compiled program's text: its computations, and how often each runs.

XLA counts the body of a loop once. Here every computation counts as often as the loops and calls
around it run it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all"),
    "collective-broadcast",
)
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    """The attributes, as they stand."""
    literal: str
    """What stands between the parentheses: of a constant its value."""
    is_root: bool

    def called(self, *attributes: str) -> list[str]:
        """The computations that these attributes name, or all of them."""
        return [
            name
            for key, value in _CALLED.findall(self.rest)
            if not attributes or key in attributes
            for name in re.findall(r"[\w.\-]+", value)
        ]


@dataclasses.dataclass(frozen=True)
class Computation:
    """Its instructions by name, in order."""

    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(each for each in self.instructions.values() if each.is_root)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations by name, and the name of the one where the program begins."""
    computations: dict[str, Computation] = {}
    current: dict[str, Instruction] = {}
    entry = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            if header := _HEADER.match(line):
                current = {}
                computations[header[2]] = Computation(current)
                entry = header[2] if header[1] else entry
        elif (instruction := _instruction(line.strip())) is not None:
            current[instruction.name] = instruction
    return computations, entry


def run_counts(computations: dict[str, Computation], entry: str) -> tuple[dict[str, int], int]:
    """How often each computation runs, and how many loops do not say how often they go round."""
    times: dict[str, int] = collections.defaultdict(int)
    open_loops = 0

    def visit(name: str, count: int) -> None:
        nonlocal open_loops
        times[name] += count
        for instruction in computations[name].instructions.values():
            rounds: int | None = 1
            if instruction.opcode == "while":
                rounds = trip_count(instruction, computations[name], computations)
                open_loops += rounds is None
            for called in instruction.called():
                if called in computations:
                    visit(called, count * (1 if rounds is None else rounds))

    visit(entry, 1)
    return times, open_loops


def trip_count(
    loop: Instruction, around: Computation, computations: dict[str, Computation]
) -> int | None:
    """How often a while loop goes round, where the program says so.

    Either the compiler noted it, or the loop is one that JAX's scans become: a counter that is
    compared with a constant.
    """
    if noted := re.search(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', loop.rest):
        return int(noted[1])
    condition = computations[loop.called("condition")[0]]
    limits = _constants(condition, computations)
    compares = [each for each in _all(condition, computations) if each.opcode == "compare"]
    read = {
        int(n)
        for each in condition.instructions.values()
        for n in re.findall(r"\bindex=(\d+)", each.rest)
    }
    if len(limits) != 1 or len(compares) != 1 or len(read) > 1:
        return None
    start = _start(loop, around, *(read or {0}))
    inclusive = "direction=LE" in compares[0].rest
    return max(0, limits[0] - start + inclusive)


def _all(computation: Computation, computations: dict[str, Computation]) -> Iterator[Instruction]:
    """Its instructions and those of the fusions in it."""
    for instruction in computation.instructions.values():
        yield instruction
        for name in instruction.called("calls"):
            yield from _all(computations[name], computations)


def _constants(computation: Computation, computations: dict[str, Computation]) -> list[int]:
    found = (each for each in _all(computation, computations) if each.opcode == "constant")
    return [int(each.literal) for each in found if re.fullmatch(r"-?\d+", each.literal)]


def _start(loop: Instruction, around: Computation, index: int) -> int:
    """What the loop's counter begins with, 0 where that cannot be seen.

    Args:
      index: the counter's place in what goes round.
    """
    at = around.instructions.get(loop.operands[0])
    while at is not None and at.opcode in ("tuple", "copy", "bitcast"):
        next_one = at.operands[index if at.opcode == "tuple" else 0]
        at = around.instructions.get(next_one)
    is_whole = at is not None and at.opcode == "constant" and at.literal.lstrip("-").isdigit()
    return int(at.literal) if at is not None and is_whole else 0


def _instruction(line: str) -> Instruction | None:
    left, equals, right = line.partition(" = ")
    if not equals:
        return None
    type_, right = _balanced(right) if right.startswith("(") else _split(right)
    opcode, _, right = right.strip().partition("(")
    inside, rest = _balanced(f"({right}")
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        type=type_,
        opcode=opcode,
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        rest=rest,
        literal=inside[1:-1],
        is_root=left.startswith("ROOT "),
    )


def _split(text: str) -> tuple[str, str]:
    first, _, rest = text.partition(" ")
    return first, rest


def _balanced(text: str) -> tuple[str, str]:
    """What the parenthesis at the beginning holds, with it, and what follows."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return text[: found.end()], text[found.end() :]
    return text, ""


def arrays(type_: str) -> list[str]:
    """The arrays in a type, each as it stands there."""
    return [found[0] for found in _ARRAY.finditer(type_)]


def array_bytes(type_: str, on_chip: bool = True) -> int:
    """The bytes of all arrays in a type; `on_chip=False` leaves out what is not in main memory."""
    total = 0.0
    for dtype, dims, layout in _ARRAY.findall(type_):
        bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or [0])[0])
        if dtype not in ("token", "opaque") and (on_chip or "S(" not in layout):
            total += math.prod(int(dim) for dim in dims.split(",") if dim) * bits / 8
    return math.ceil(total)
