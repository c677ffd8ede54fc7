"""The text of a compiled program (HLO), read: what runs, and how often.

A program is a set of computations; an instruction may call others: a fusion its body, a
loop its body and condition. The compiler's own totals count a loop's body once. Here
every instruction comes with the number of times that it runs in one call.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"([\w\-]+)\(")
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_CALLED_SETS = re.compile(r"(branch_computations|called_computations)=\{([^}]*)\}")
_SHAPE = re.compile(r"([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\](\{[^}]*\})?")

BYTES: Mapping[str, float] = {
    **{"pred": 1, "s2": 0.25, "u2": 0.25, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1},
    **{"s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4},
    **{"s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16},
    **{"f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3": 1, "f8e4m3b11fnuz": 1, "token": 0},
}
"""Of one element."""

FUSED = ("fusion",)
"""Opcodes whose computation is one piece of work: the instruction's own cost is all."""


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result.

    Attributes:
        dtype: HLO's name, such as "bf16".
        shape: of one device's part.
        space: 0 is main memory (HBM); others are on the chip.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Without the padding of tiles."""
        size = BYTES.get(self.dtype, 4.0)
        for extent in self.shape:
            size *= extent
        return int(size)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
        arrays: its result; several of a tuple.
        operands: names, in the same computation.
        called: computations that it calls, by the attribute that names them.
        attributes: the rest of the line.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    called: tuple[tuple[str, str], ...]
    attributes: str
    inside: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Of the result."""
        return sum(array.bytes for array in self.arrays)

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression in the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    @property
    def cycles(self) -> int:
        """The compiler's estimate for running it once; 0 where it has none."""
        return int(self.attribute(r'"estimated_cycles":"(\d+)"') or 0)


Computation = Mapping[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name; the entry is where a call begins."""

    computations: Mapping[str, Computation]
    entry: str


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction that runs `times` in one call of the program.

    Attributes:
        site: numbers a computation at one place of the program; two calls of the same
            computation differ. What is fused has the site of its fusion.
        fusion: of an instruction in a fusion, the computation; else "".
    """

    instruction: Instruction
    computation: Computation
    times: int
    site: int
    fusion: str


def parse(text: str) -> Program:
    """Read the text; raises ValueError when it has no entry."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            computations[name] = {}
            entry = name if header[1] else entry
        elif name and (found := _NAME.match(line)):
            instruction = _instruction(line, found, name)
            if instruction is not None:
                computations[name][instruction.name] = instruction
    if not entry:
        raise ValueError("this is no HLO module: it has no ENTRY computation")
    return Program(computations, entry)


def runs(program: Program) -> Iterator[Run]:
    """Everything that runs, with fused instructions after their fusion.

    A loop whose length cannot be read counts as one round (see `unknown_loops`). Of a
    conditional all branches are listed: what runs is at most that.
    """
    sites = iter(range(10**9))

    def visit(name: str, times: int, site: int, fusion: str) -> Iterator[Run]:
        computation = program.computations.get(name, {})
        for instruction in computation.values():
            yield Run(instruction, computation, times, site, fusion)
            rounds = 1
            if instruction.opcode == "while":
                rounds = trip_count(program, instruction) or 1
            for role, called in instruction.called:
                if role == "to_apply" and instruction.opcode != "call":
                    continue  # the scalar function of a reduction
                if fusion or instruction.opcode in FUSED:
                    yield from visit(called, times, site, called)
                else:
                    yield from visit(called, times * rounds, next(sites), "")

    return visit(program.entry, 1, next(sites), "")


def total_cycles(program: Program) -> int:
    """The compiler's estimated cycles of one call, loops multiplied by their rounds.

    One instruction after the other; collectives and asynchronous copies have none.
    """
    return sum(
        run.instruction.cycles * run.times for run in runs(program) if not run.fusion
    )


def unknown_loops(program: Program) -> list[str]:
    """Loops that were counted as one round, because their length cannot be read."""
    return sorted(
        {
            run.instruction.name
            for run in runs(program)
            if run.instruction.opcode == "while"
            and trip_count(program, run.instruction) is None
        }
    )


def trip_count(program: Program, loop: Instruction) -> int | None:
    """How many rounds a `while` has; None when it cannot be read.

    From the compiler's note if it left one, else from a condition `i < n` (or `<=`,
    `>`, `>=`, `!=`) and from where i starts and what the body adds to it.
    """
    noted = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if noted is not None:
        return int(noted)
    roles = dict(loop.called)
    condition = program.computations.get(roles.get("condition", ""), {})
    body = program.computations.get(roles.get("body", ""), {})
    outside = program.computations.get(loop.inside, {})
    compare = _comparison(program, condition)
    if compare is None or not body:
        return None
    direction, (left, right) = compare
    start_of = functools.partial(_carried, outside, loop)
    if left.opcode == "constant":  # n > i
        left, right = right, left
        direction = {"GT": "LT", "GE": "LE", "LT": "GT", "LE": "GE"}.get(
            direction, direction
        )
    index, start, end = _index(left), start_of(left), start_of(right)
    if index is None or start is None or end is None:
        return None
    step = _step(body, index)
    distance = end - start + (step if direction in ("LE", "GE") else 0)
    return max(0, -(-distance // step)) if step else None


def _instruction(
    line: str, found: re.Match[str], computation: str
) -> Instruction | None:
    """A parsed line; None when it is no instruction."""
    rest = line[found.end() :]
    end = _balanced(rest) if rest.startswith("(") else rest.find(" ")
    opcode = _OPCODE.match(rest[end:].lstrip())
    if opcode is None:
        return None
    arguments = rest[end:].lstrip()[opcode.end() - 1 :]
    closing = _balanced(arguments)
    inner, attributes = arguments[1 : closing - 1], arguments[closing:]
    called = [(m[1], m[2]) for m in _CALLED.finditer(attributes)]
    for group in _CALLED_SETS.finditer(attributes):
        called += [(group[1], n.strip().lstrip("%")) for n in group[2].split(",")]
    if opcode[1] in ("constant", "parameter"):
        attributes = f"({inner}){attributes}"
        operands: list[str] = []
    else:
        operands = re.findall(r"%([\w.\-]+)", inner)
    return Instruction(
        name=found[2],
        opcode=opcode[1],
        arrays=tuple(_arrays(rest[:end])),
        operands=tuple(operands),
        called=tuple(called),
        attributes=attributes,
        inside=computation,
        is_root=bool(found[1]),
    )


def _arrays(text: str) -> Iterator[Array]:
    for dtype, extents, layout in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        yield Array(
            dtype,
            tuple(int(n.removeprefix("<=")) for n in extents.split(",") if n),
            int(space[1]) if space else 0,
        )


def _balanced(text: str) -> int:
    """The position after the bracket that closes the first one."""
    depth = 0
    for position, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if not depth:
            return position + 1
    return len(text)


def _comparison(
    program: Program, condition: Computation
) -> tuple[str, tuple[Instruction, Instruction]] | None:
    """The direction and the two sides on which a condition depends."""
    root = next((line for line in condition.values() if line.is_root), None)
    if root is None:
        return None
    sides = tuple(condition[n] for n in root.operands if n in condition)
    if root.opcode == "fusion":  # one comparison, wrapped
        inner = program.computations.get(dict(root.called)["calls"], {})
        wrapped = _comparison(program, inner)
        if wrapped is None:
            return None
        way, (left, right) = wrapped
        return way, (_argument(left, sides), _argument(right, sides))
    direction = root.attribute(r"direction=(\w+)")
    if root.opcode != "compare" or direction is None or len(sides) != 2:
        return None
    return direction, (sides[0], sides[1])


def _argument(side: Instruction, operands: tuple[Instruction, ...]) -> Instruction:
    """What a fused parameter stands for; anything else is itself."""
    if side.opcode != "parameter":
        return side
    number = int(side.attribute(r"\((\d+)\)") or 0)
    return operands[number] if number < len(operands) else side


def _index(line: Instruction) -> int | None:
    """Which element of the loop's state this is."""
    number = line.attribute(r"index=(\d+)")
    is_element = line.opcode == "get-tuple-element" and number is not None
    return int(number or 0) if is_element else None


def _carried(outside: Computation, loop: Instruction, side: Instruction) -> int | None:
    """The whole number that a side of the condition has in the first round."""
    if side.opcode == "constant":
        return _number(side)
    index, state = _index(side), outside.get(next(iter(loop.operands), ""))
    while state is not None and state.opcode in ("copy", "opt-barrier"):
        state = outside.get(state.operands[0])
    if index is None or state is None or index >= len(state.operands):
        return None
    start = outside.get(state.operands[index])
    while start is not None and start.opcode in ("copy", "bitcast", "convert"):
        start = outside.get(start.operands[0])
    return _number(start) if start is not None else None


def _number(line: Instruction) -> int | None:
    text = line.attribute(r"^\((-?\d+)\)")
    return int(text) if line.opcode == "constant" and text is not None else None


def _step(body: Computation, index: int) -> int:
    """What a round adds to its counter; 1 where it cannot be read."""
    root = next((line for line in body.values() if line.is_root), None)
    if root is None or root.opcode != "tuple" or index >= len(root.operands):
        return 1
    added = body.get(root.operands[index])
    while added is not None and added.opcode in ("copy", "bitcast"):
        added = body.get(added.operands[0])
    if added is None or added.opcode != "add":
        return 1
    numbers = [_number(body[name]) for name in added.operands if name in body]
    return next((n for n in numbers if n), 1)
