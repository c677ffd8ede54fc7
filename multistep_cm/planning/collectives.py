"""What the devices of a compiled program say to each other: kinds and bytes.

All of one device, in one call of the program, loops multiplied by their rounds:

- `bytes`: of the whole array that a device contributes to or comes out with: the output
  of an all-gather, the input of a reduce-scatter, all-reduce, all-to-all or permute.
- `link_bytes`: what a device receives over its links when n devices form a ring, the
  least that a ring can do: (n-1)/n of the bytes for all-gather, reduce-scatter and
  all-to-all, twice that for all-reduce, all of them for a permute.

An asynchronous collective is several instructions (start, fused steps, done) of one
channel and counts once. An all-reduce of which a device keeps only its slice, fused, is
how the TPU compiler writes a reduce-scatter.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

from multistep_cm.planning.hlo import Array, Instruction, Program, Run, runs

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind, element type and number of devices.

    Attributes:
        group_size: devices that take part in each.
        count: how many run in a call.
        bytes, link_bytes: of one device; see the module.
    """

    kind: str
    dtype: str
    group_size: int
    count: int
    bytes: int
    link_bytes: int


def collectives(program: Program, num_devices: int) -> list[Collective]:
    """By kind, type and size of the group; those with most bytes over links first.

    A collective of several arrays counts once, under the type with most bytes; its
    other types make rows with a count of 0.
    """
    counts: dict[tuple[str, str, int], list[float]] = defaultdict(lambda: [0, 0, 0])
    for run, kind in _starts(program):
        group = group_size(run.instruction, num_devices)
        sizes: dict[str, int] = defaultdict(int)
        for array in _whole_arrays(run, kind, group):
            sizes[array.dtype] += array.bytes
        for i, (dtype, size) in enumerate(sorted(sizes.items(), key=lambda s: -s[1])):
            row = counts[kind, dtype, group]
            row[0] += run.times * (i == 0)
            row[1] += run.times * size
            row[2] += run.times * size * _ring_share(kind, group)
    rows = [
        Collective(*key, int(count), int(size), round(received))
        for key, (count, size, received) in counts.items()
    ]
    return sorted(rows, key=lambda row: -row.link_bytes)


def group_size(instruction: Instruction, num_devices: int) -> int:
    """How many devices take part in each group of a collective.

    Reads the lists `{{0,1},{2,3}}`, the grid `[groups,size]<=[..]` and the axes of a
    mesh `mesh['a'=2,'b'=4] {'b'}`; no groups means one of all devices.
    """
    if "source_target_pairs" in instruction.attributes:
        return 2
    if found := instruction.attribute(r"replica_groups=\[\d+,(\d+)\]"):
        return int(found)
    if found := instruction.attribute(r"replica_groups=\{\{([\d,]+)\}"):
        return found.count(",") + 1
    mesh = re.search(
        r"replica_groups=(?:@?[\w.]+)?mesh\[([^\]]*)\]\s*\{([^}]*)\}",
        instruction.attributes,
    )
    if mesh is None:
        return num_devices
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    # An axis, or a part of one: 'a':(4)2 has 2 devices.
    used = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part) if part else sizes[name] for name, part in used)


def _starts(program: Program) -> Iterator[tuple[Run, str]]:
    """One run for each collective, and its kind."""
    seen: set[tuple[int, str]] = set()
    for run in runs(program):
        line = run.instruction
        kind = line.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        if run.fusion and _mentions(run, "AsyncCollectiveDone"):
            continue
        channel = line.attribute(r"channel_id=(\d+)")
        if channel is not None:
            if (run.site, channel) in seen:
                continue
            seen.add((run.site, channel))
        if kind == "all-reduce" and _kept_slice(run) is not None:
            kind = "reduce-scatter"
        yield run, kind


def _mentions(run: Run, target: str) -> bool:
    """Whether the computation around a collective calls this target."""
    return any(
        f'custom_call_target="{target}"' in line.attributes
        for line in run.computation.values()
    )


def _kept_slice(run: Run) -> Instruction | None:
    """The slice of an all-reduce that is all that its fusion keeps."""
    if not run.fusion:
        return None
    users = [u for u in run.computation.values() if run.instruction.name in u.operands]
    slices = [user for user in users if user.opcode == "dynamic-slice"]
    return slices[0] if slices and len(slices) == len(users) else None


def _whole_arrays(run: Run, kind: str, group: int) -> Iterator[Array]:
    """The arrays whose bytes count: from the operands, whatever form the result has."""
    for name in run.instruction.operands:
        operand = run.computation.get(name)
        for array in operand.arrays if operand else ():
            if kind != "all-gather":
                yield array
            else:
                yield dataclasses.replace(array, shape=(group, *array.shape))


def _ring_share(kind: str, group: int) -> float:
    """Received over links for each byte of the whole array."""
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    share = (group - 1) / group
    return 2 * share if kind == "all-reduce" else share
