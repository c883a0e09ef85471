"""A compiled program's text, read for what travels between devices and through their memory.

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
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "opt-barrier", "domain", "async-update"),
}
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


@dataclasses.dataclass(frozen=True)
class Collective:
    """Something that devices exchange, each time with the same others."""

    kind: str
    bytes: int
    """What one device holds of it when it is whole: an all-gather's result, a reduce-scatter's
    operand."""
    times: int
    """How often the program makes it."""
    group: tuple[int, ...]
    """One group of devices that exchange, by their place in the mesh, row by row."""
    arrays: tuple[str, ...]
    """What is exchanged, as `bf16[2048,4096]`; XLA may join several into one."""
    is_hidden: bool
    """Whether it is started early and waited for late, so that products can go on meanwhile."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled program does to the wires and the memory of one device."""

    collectives: tuple[Collective, ...]
    traffic: float
    """Bytes read and written, of what the compiler did not keep on the chip."""
    open_loops: int
    """Loops whose number of rounds only the data tell; their bodies count once."""


def read(text: str) -> Program:
    """Read `compiled.as_text()`."""
    computations, entry = parse(text)
    times, open_loops = run_counts(computations, entry)
    fused = {
        name
        for each in computations.values()
        for instruction in each.instructions.values()
        if instruction.opcode == "fusion"
        for name in instruction.called("calls")
    }
    found, traffic = [], 0.0
    for name, computation in computations.items():
        for instruction in computation.instructions.values() if times[name] else ():
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES and not instruction.opcode.endswith("-done"):
                found.append(_collective(instruction, computation, times[name]))
            if name not in fused:
                traffic += times[name] * _traffic(instruction, computation, computations)
    return Program(tuple(found), traffic, open_loops)


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
    if len(limits) != 1 or len(compares) != 1:
        return None
    start = _start(loop, around, condition)
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


def _start(loop: Instruction, around: Computation, condition: Computation) -> int:
    """What the loop's counter begins with, 0 where that cannot be seen."""
    (index,) = {
        int(found[1])
        for each in condition.instructions.values()
        if (found := re.search(r"\bindex=(\d+)", each.rest))
    } or {0}
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


def array_bytes(type_: str, on_chip: bool = True) -> int:
    """The bytes of all arrays in a type; `on_chip=False` leaves out what is not in main memory."""
    total = 0.0
    for dtype, dims, layout in _ARRAY.findall(type_):
        bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or [0])[0])
        if dtype not in ("token", "opaque") and (on_chip or "S(" not in layout):
            total += math.prod(int(dim) for dim in dims.split(",") if dim) * bits / 8
    return math.ceil(total)


def _collective(instruction: Instruction, computation: Computation, times: int) -> Collective:
    operands = [computation.instructions[name].type for name in instruction.operands]
    given = sum(map(array_bytes, operands))
    made = array_bytes(instruction.type)
    kind = instruction.opcode.removesuffix("-start")
    is_started = instruction.opcode.endswith("-start")
    if is_started and kind != "all-reduce":
        made -= given  # the result's type repeats the operand
    is_scattered = kind == "all-reduce" and computation.root.opcode == "dynamic-slice"
    arrays = (f"{dtype}[{dims}]" for each in operands for dtype, dims, _ in _ARRAY.findall(each))
    return Collective(
        kind="reduce-scatter" if is_scattered else kind,
        bytes=max(given, made),
        times=times,
        group=first_group(instruction.rest),
        arrays=tuple(arrays),
        is_hidden=is_started,
    )


def first_group(attributes: str) -> tuple[int, ...]:
    """The devices that the first of a collective's groups names, in any of XLA's notations."""
    if pairs := re.search(r"source_target_pairs=\{\{([\d,]+)\}", attributes):
        return tuple(int(device) for device in pairs[1].split(","))
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(int(device) for device in listed[1].split(","))
    if iota := re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        return tuple(_iota(iota[3], iota[4])[: int(iota[2])])
    if mesh := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?"
        r"\{([^}]*)\}",
        attributes,
    ):
        return _of_mesh(*mesh.groups())
    return ()


def _iota(dims: str, order: str | None) -> list[int]:
    """0, 1, ... in an array of these dims, transposed, row by row."""
    sizes = [int(size) for size in dims.split(",")]
    axes = [int(axis) for axis in order.split(",")] if order else list(range(len(sizes)))
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    found = [0]
    for axis in axes:
        found = [begin + i * strides[axis] for begin in found for i in range(sizes[axis])]
    return found


def _of_mesh(axes: str, dims: str | None, order: str | None, named: str) -> tuple[int, ...]:
    sizes = [(name, int(size)) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)]
    ids = _iota(dims or ",".join(str(size) for _, size in sizes), order)
    inside = set(re.findall(r"'(\w+)'", named))
    places, stride = [0], len(ids)
    for name, size in sizes:
        stride //= size
        if name in inside:
            places = [place + i * stride for place in places for i in range(size)]
    return tuple(ids[place] for place in places)


def _traffic(
    instruction: Instruction, around: Computation, computations: dict[str, Computation]
) -> float:
    """Bytes that it reads from main memory and writes there."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done") or "AllocateBuffer" in instruction.rest:
        return 0
    types = [around.instructions[name].type for name in instruction.operands]
    sizes = [array_bytes(each, on_chip=False) for each in types]
    made = array_bytes(instruction.type, on_chip=False)
    if opcode in ("dynamic-slice", "gather"):
        return 2 * made
    if opcode == "dynamic-update-slice":
        return 2 * sizes[1]
    if opcode == "scatter":
        return 2 * sizes[-1]
    if opcode == "copy-start":
        return sizes[0] + sum(array_bytes(each, False) for each in instruction.type.split("}")[:1])
    if opcode == "fusion":
        inner = computations[instruction.called("calls")[0]]
        return _read_by(inner, sizes, computations) + _written_by(inner, made)
    return sum(sizes) + made


def _read_by(inner: Computation, sizes: list[int], computations: dict[str, Computation]) -> float:
    """Of its operands, what a fusion reads: of one it only takes slices from, those."""
    total = 0.0
    for each in inner.instructions.values():
        if each.opcode == "parameter":
            part = _part_read(each.name, inner, computations)
            whole = sizes[int(each.literal)]
            total += whole if part is None else min(whole, part)
    return total


def _part_read(name: str, inner: Computation, computations: dict[str, Computation]) -> float | None:
    """The bytes that slices take from a fusion's operand; `None` where something reads it all."""
    total = 0.0
    for use in inner.instructions.values():
        for place in (i for i, operand in enumerate(use.operands) if operand == name):
            part: float | None = None
            if use.opcode in ("dynamic-slice", "gather") and not place:
                part = array_bytes(use.type)
            elif use.opcode == "dynamic-update-slice" and not place:
                part = 0.0
            elif use.opcode == "bitcast":
                part = _part_read(use.name, inner, computations)
            elif use.opcode == "fusion":
                nested = computations[use.called("calls")[0]]
                part = _part_read(_parameter(nested, place), nested, computations)
            if part is None:
                return None
            total += part
    return total


def _parameter(computation: Computation, index: int) -> str:
    found = computation.instructions.values()
    return next(i.name for i in found if i.opcode == "parameter" and i.literal == str(index))


def _written_by(inner: Computation, made: int) -> float:
    """Of its results, what a fusion writes: into one it updates in place, the update."""
    root = inner.root
    names = root.operands if root.opcode == "tuple" else (root.name,)
    total = float(made)
    for name in names:
        at = inner.instructions[name]
        while at.opcode == "bitcast":
            at = inner.instructions[at.operands[0]]
        if at.opcode == "dynamic-update-slice":
            update = inner.instructions[at.operands[1]]
            total -= array_bytes(at.type) - array_bytes(update.type)
    return max(0.0, total)
