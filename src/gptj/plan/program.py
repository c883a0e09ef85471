"""What a compiled program does to the wires and the memory of one device."""

from __future__ import annotations

import collections
import dataclasses
import math
import re

from gptj.plan.hlo import (
    COLLECTIVES,
    Computation,
    Instruction,
    array_bytes,
    arrays,
    parse,
    run_counts,
)
from gptj.plan.traffic import traffic


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
    fused_in = {
        called: name
        for name, each in computations.items()
        for instruction in each.instructions.values()
        if instruction.opcode == "fusion"
        for called in instruction.called("calls")
    }
    found: dict[tuple[str, str], list[Collective]] = collections.defaultdict(list)
    moved = 0.0
    for name, computation in computations.items():
        for instruction in computation.instructions.values() if times[name] else ():
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES and not instruction.opcode.endswith("-done"):
                key = _whole(instruction, name, fused_in)
                found[key].append(_collective(instruction, computation, times[name]))
            if name not in fused_in:
                moved += times[name] * traffic(instruction, computation, computations)
    joined = [_joined(pieces) for pieces in found.values()]
    return Program(tuple(joined), moved, open_loops)


def _whole(instruction: Instruction, name: str, fused_in: dict[str, str]) -> tuple[str, str]:
    """What the pieces of one collective have in common.

    A TPU's compiler may let one go on during several products: it stands in the fusion of each.
    """
    channel = re.search(r"channel_id=(\d+)", instruction.rest)
    if channel is None or name not in fused_in:
        return name, instruction.name
    return fused_in[name], channel[0]


def _joined(pieces: list[Collective]) -> Collective:
    return dataclasses.replace(pieces[0], is_hidden=pieces[0].is_hidden or len(pieces) > 1)


def _collective(instruction: Instruction, computation: Computation, times: int) -> Collective:
    operands = [computation.instructions[name].type for name in instruction.operands]
    given = sum(map(array_bytes, operands))
    made = array_bytes(instruction.type)
    kind = instruction.opcode.removesuffix("-start")
    is_started = instruction.opcode.endswith("-start")
    if kind == "collective-permute":
        made = given  # beside which the type of one that is started has a counter or two
    elif is_started and kind != "all-reduce":
        made -= given  # the result's type repeats the operand
    is_scattered = kind == "all-reduce" and _is_sliced(instruction, computation)
    written = (each.partition("{")[0] for type_ in operands for each in arrays(type_))
    return Collective(
        kind="reduce-scatter" if is_scattered else kind,
        bytes=max(given, made),
        times=times,
        group=first_group(instruction.rest),
        arrays=tuple(written),
        is_hidden=is_started,
    )


def _is_sliced(sum_: Instruction, computation: Computation) -> bool:
    """Whether of a sum each device keeps its part alone: so a TPU scatters it."""

    def unchanged(at: Instruction) -> Instruction:
        while at.opcode in ("bitcast", "copy", "reshape", "convert") and len(at.operands) == 1:
            at = computation.instructions[at.operands[0]]
        return at

    root = unchanged(computation.root)
    if root.opcode != "dynamic-slice":
        return False
    return unchanged(computation.instructions[root.operands[0]]).name == sum_.name


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
