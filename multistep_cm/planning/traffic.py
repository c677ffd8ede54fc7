"""Bytes between HBM and the chip in one call of a compiled program: an estimate.

Every piece of work (a fusion, a copy, a product) reads its operands once and writes its
result once, as the compiler's own count has it; but loops are multiplied by their
rounds, and arrays that the compiler keeps on the chip count nothing. Of an array that a
fusion only slices, the slices count; of one that it updates in place, the update.
"""

from multistep_cm.planning.hlo import Array, Computation, Instruction, Program, runs

FREE = frozenset(
    {
        *(
            "parameter",
            "constant",
            "tuple",
            "get-tuple-element",
            "bitcast",
            "after-all",
        ),
        *("while", "conditional", "call", "opt-barrier", "partition-id", "replica-id"),
        *("add-dependency", "iota"),
    }
)
"""Opcodes that move nothing: names, or what they call is counted itself."""

PASSING = ("bitcast", "copy", "reshape", "convert")
"""Between a fusion's parameter and the slice that is taken of it."""


def hbm_bytes(program: Program) -> int:
    """Read and written by one device."""
    total = 0
    for run in runs(program):
        line = run.instruction
        if run.fusion or line.opcode in FREE or line.opcode.endswith("-done"):
            continue
        total += run.times * _bytes(program, run.computation, line)
    return total


def _bytes(program: Program, computation: Computation, line: Instruction) -> int:
    """Of one instruction, run once."""
    operands = [computation[name] for name in line.operands if name in computation]
    if line.opcode == "fusion":
        inner = program.computations.get(dict(line.called).get("calls", ""), {})
        if any("AsyncCollectiveDone" in part.attributes for part in inner.values()):
            return 0  # counted where it starts
        return _fusion_bytes(inner, operands, line)
    if line.opcode == "copy-start":
        return _in_hbm(line.arrays[:2])  # to, from, context
    if line.opcode == "slice-start":
        to = line.arrays[-2]  # from .., to, context
        return to.bytes * (bool(_in_hbm((to,))) + bool(_in_hbm(operands[0].arrays)))
    if line.opcode.endswith("-start"):
        # The result holds the operands again; every collective writes what it reads.
        return 2 * sum(_in_hbm(operand.arrays) for operand in operands)
    if line.opcode == "dynamic-slice":
        return 2 * _in_hbm(line.arrays)
    if line.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(operands[1].arrays) if len(operands) > 1 else 0
    return _in_hbm(line.arrays) + sum(_in_hbm(o.arrays) for o in operands)


def _fusion_bytes(
    inner: Computation, operands: list[Instruction], fusion: Instruction
) -> int:
    parameters = {
        int(line.attribute(r"^\((\d+)\)") or 0): line
        for line in inner.values()
        if line.opcode == "parameter"
    }
    total, updated = 0, _in_place_updates(inner)
    for number, operand in enumerate(operands):
        whole = _in_hbm(operand.arrays)
        parameter = parameters.get(number)
        if parameter is None or not whole:
            total += whole
            continue
        sliced = _sliced_bytes(inner, parameter)
        total += whole if sliced is None else min(whole, sliced)
    if updated is not None:
        return total + (updated if _in_hbm(fusion.arrays) else 0)
    return total + _in_hbm(fusion.arrays)


def _sliced_bytes(inner: Computation, line: Instruction) -> int | None:
    """Bytes that are read of a fused parameter; None when all of it is."""
    total = 0
    for user in inner.values():
        if line.name not in user.operands:
            continue
        first = user.operands[0] == line.name
        if user.opcode == "dynamic-slice" and first:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and first:
            continue  # in place
        elif user.opcode in PASSING and not user.is_root:
            deeper = _sliced_bytes(inner, user)
            if deeper is None:
                return None
            total += deeper
        else:
            return None
    return total


def _in_place_updates(inner: Computation) -> int | None:
    """Bytes written when the fusion's result is an updated array; else None."""
    root = next((line for line in inner.values() if line.is_root), None)
    while root is not None and root.opcode in PASSING and root.operands:
        root = inner.get(root.operands[0])
    if root is None or root.opcode != "dynamic-update-slice":
        return None
    update = inner.get(root.operands[1])
    return update.bytes if update is not None else None


def _in_hbm(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if array.space == 0)
