"""What a compiled program's instructions read from a device's main memory and write there."""

from __future__ import annotations

from gptj.plan.hlo import COLLECTIVES, Computation, Instruction, array_bytes, arrays

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "opt-barrier", "domain"),
    *("async-start", "async-update"),  # what they call counts itself
}
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast")


def traffic(
    instruction: Instruction, around: Computation, computations: dict[str, Computation]
) -> float:
    """Bytes that it reads from main memory and writes there."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0
    if opcode == "custom-call" and any(name in instruction.rest for name in _FREE_CALLS):
        return 0
    types = [around.instructions[name].type for name in instruction.operands]
    sizes = [array_bytes(each, on_chip=False) for each in types]
    made = array_bytes(instruction.type, on_chip=False)
    if opcode in ("slice", "dynamic-slice", "gather"):
        return 2 * made
    if opcode == "dynamic-update-slice":
        return 2 * sizes[1]
    if opcode == "scatter":
        return 2 * sizes[-1]
    if opcode == "copy-start":
        return sizes[0] + array_bytes(arrays(instruction.type)[0], on_chip=False)
    if opcode == "slice-start":
        part = arrays(instruction.type)[1]
        return (array_bytes(part) if sizes[0] else 0) + array_bytes(part, on_chip=False)
    if opcode == "fusion":
        inner = computations[instruction.called("calls")[0]]
        if "AsyncCollectiveDone" in inner.root.rest:  # where it started it was counted
            return 0
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
    """The bytes that slices take from a fusion's operand; `None` where something reads it all.

    What is only passed on, with the collective on it that goes on meanwhile, is not read here.
    """
    total = 0.0
    is_passed = inner.root.opcode == "tuple" and name in inner.root.operands
    for use in inner.instructions.values():
        for place in (i for i, operand in enumerate(use.operands) if operand == name):
            part: float | None = None
            if use.opcode in ("dynamic-slice", "gather") and not place:
                part = array_bytes(use.type)
            elif use.opcode in (("tuple", *COLLECTIVES) if is_passed else ()) or (
                use.opcode == "dynamic-update-slice" and not place
            ):
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
    """Of its results, what a fusion writes: into one it updates in place, the update.

    What it passes on, or what a collective makes meanwhile, it does not write.
    """
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
        elif root.opcode == "tuple" and at.opcode in ("parameter", *COLLECTIVES):
            total -= array_bytes(at.type, on_chip=False)
    return max(0.0, total)
