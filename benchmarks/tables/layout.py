"""The paper's tables in small: which students stand in which row, and what is claimed.

Table numbers are the paper's. A claim is a list of comparisons of two cells, each of
which says that the first has the larger distance.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from benchmarks.tables.students import Student, halving, single, tract

Cell: TypeAlias = tuple[str, int]
"""A row's label and a number of steps."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """`text` holds where every pair's first cell is worse than its second."""

    text: str
    pairs: tuple[tuple[Cell, Cell], ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows by label, each with a student for every number of steps that it has.

    Attributes:
        title: what is compared.
        rows: label to the student of a number of steps.
        steps: the columns.
        only: for labels that exist for some columns, which.
        teacher: number of steps of the diffusion model's rows; empty: not shown.
        claims: what to look for.
    """

    title: str
    rows: Mapping[str, Callable[[int], Student]]
    steps: tuple[int, ...]
    only: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    teacher: tuple[int, ...] = ()
    claims: tuple[Claim, ...] = ()

    def columns(self, label: str) -> tuple[int, ...]:
        """The numbers of steps for which a row has a student."""
        return self.only.get(label, self.steps)

    def students(self) -> list[Student]:
        """Every student of the table, rows first."""
        return [
            make(steps)
            for label, make in self.rows.items()
            for steps in self.columns(label)
        ]


def falling(label: str, steps: Sequence[int], text: str) -> Claim:
    """Every number of steps is worse than the next."""
    pairs = itertools.pairwise(steps)
    return Claim(text, tuple(((label, a), (label, b)) for a, b in pairs))


def worse(first: str, second: str, steps: Sequence[int], text: str) -> Claim:
    """The first row is worse than the second at each of these numbers of steps."""
    return Claim(text, tuple(((first, k), (second, k)) for k in steps))


def _maker(name: str, stage: str, **changes: object) -> Callable[[int], Student]:
    return lambda steps: single(name, stage, steps, **changes)


def _grid(name: str, start: int, end: int, hop: str = "") -> Callable[[int], Student]:
    ends = {"start": float(start), "end": float(end)}
    keys: dict[str, object] = {
        f"consistency__teacher_steps_{k}": value for k, value in ends.items()
    }
    if hop:
        keys["consistency__hop"] = hop
    return _maker(name, "cd", **keys)


def _halving(name: str, first_hop: str, hop: str) -> Callable[[int], Student]:
    return lambda steps: halving(name, steps, 32, first_hop, hop)


CD, CT = _maker("cd", "cd"), _maker("ct", "ct")
CD_SQRT = _maker("cd_weight_sqrt", "cd", consistency__weight="sqrt_snr_plus_1")
ANNEALED = _grid("cd_grid_16_256", 16, 256)

TABLE_1 = Table(
    title="Table 1: steps of CT and CD, and the teacher",
    rows={"CT": CT, "CD": CD},
    steps=(1, 2, 4, 8, 16),
    teacher=(1, 2, 4, 8, 16, 128),
    claims=(
        falling("CD", (1, 2, 4, 8), "CD: 1 > 2 > 4 > 8 steps"),
        falling("CD", (8, 16), "CD: 8 > 16 steps"),
        falling("CT", (1, 2, 4, 8), "CT: 1 > 2 > 4 > 8 steps"),
        falling("CT", (8, 16), "CT: 8 > 16 steps"),
        worse("CT", "CD", (1, 2), "CT worse than CD at 1 and 2 steps"),
        worse("CT", "CD", (4, 8), "CT worse than CD at 4 and 8 steps"),
        worse(
            "teacher_ddim",
            "CD",
            (1, 2, 4, 8),
            "the teacher worse in as many DDIM steps",
        ),
    ),
)

TABLE_2 = Table(
    title="Table 2: annealed against constant discretisation (CD)",
    rows={
        "16 -> 256": ANNEALED,
        "32 -> 64": CD,
        "16": _grid("cd_grid_16", 16, 16),
        "32": _grid("cd_grid_32", 32, 32),
        "64": _grid("cd_grid_64", 64, 64),
        "256": _grid("cd_grid_256", 256, 256),
        "64 -> 1280": _grid("cd_grid_64_1280", 64, 1280),
    },
    steps=(1, 4),
    claims=(
        worse("256", "16 -> 256", (1, 4), "256 constant worse than 16 -> 256"),
        worse("64", "16 -> 256", (1, 4), "64 constant worse than 16 -> 256"),
        worse("16", "16 -> 256", (1, 4), "16 constant worse than 16 -> 256"),
        worse("64 -> 1280", "32 -> 64", (1,), "64 -> 1280 too fine for K = 1 here"),
    ),
)

TABLE_3 = Table(
    title="Table 3: beside progressive distillation, TRACT and consistency models",
    rows={
        "CD": CD,
        "CD, weight sqrt(SNR + 1)": CD_SQRT,
        "CT": CT,
        "progressive, aDDIM first": _halving("pd_addim", "addim", "ddim"),
        "progressive, DDIM": _halving("pd_ddim", "ddim", "ddim"),
        "progressive, aDDIM always": _halving("pd_addim_always", "addim", "addim"),
        "TRACT": lambda k: tract("tract", k, 256, 32),
        "consistency model CD": _maker("cm_cd", "cm_cd"),
        "consistency model CT": _maker("cm_ct", "cm_ct"),
        "improved CT": _maker("ict", "ict"),
    },
    steps=(1, 2, 4, 8),
    only={
        "progressive, aDDIM always": (4, 8),
        "consistency model CD": (1,),
        "consistency model CT": (1,),
        "improved CT": (1,),
    },
    claims=(
        worse(
            "progressive, aDDIM first", "CD", (1, 2, 4, 8), "progressive worse than CD"
        ),
        worse("TRACT", "CD", (1, 2, 4, 8), "TRACT worse than CD"),
        worse(
            "TRACT", "progressive, aDDIM first", (1, 2, 4, 8), "TRACT worse than prog."
        ),
        worse(
            "progressive, DDIM",
            "progressive, aDDIM first",
            (4, 8),
            "progressive: DDIM worse than aDDIM at 4 and 8 steps",
        ),
        worse(
            "progressive, aDDIM first",
            "CD, weight sqrt(SNR + 1)",
            (1,),
            "progressive worse than CD with that weight at 1 step",
        ),
        worse("consistency model CD", "CD", (1,), "consistency model CD worse than CD"),
        worse("consistency model CT", "improved CT", (1,), "CM CT worse than iCT"),
    ),
)


def _longer(make: Callable[[int], Student], budget: int) -> Callable[[int], Student]:
    def longer(steps: int) -> Student:
        student = make(steps)
        name = f"{student.name}_x{budget}"
        return dataclasses.replace(student, name=name, budget=budget)

    return longer


PROGRESSIVE = TABLE_3.rows["progressive, aDDIM first"]

BUDGET = Table(
    title="Budget: four times the iterations",
    rows={
        "CD": CD,
        "CD, x 4": _longer(CD, 4),
        "CT": CT,
        "CT, x 4": _longer(CT, 4),
        "progressive, aDDIM first": PROGRESSIVE,
        "progressive, aDDIM first, x 4": _longer(PROGRESSIVE, 4),
    },
    steps=(1, 4),
    claims=(
        worse("CD", "progressive, aDDIM first", (1, 4), "CD worse than progressive"),
        worse(
            "CD, x 4",
            "progressive, aDDIM first, x 4",
            (1, 4),
            "CD x 4 worse than progressive x 4",
        ),
    ),
)

TABLE_4 = Table(
    title="Table 4: the teacher's hop (CD)",
    rows={
        "aDDIM": CD,
        "DDIM": _maker("cd_ddim", "cd", consistency__hop="ddim"),
        "Heun": _maker("cd_heun", "cd", consistency__hop="heun"),
        "aDDIM, grid 256": _grid("cd_grid_256", 256, 256),
        "DDIM, grid 256": _grid("cd_ddim_grid_256", 256, 256, "ddim"),
    },
    steps=(1, 2, 4, 8, 16),
    only={"Heun": (1, 4), "aDDIM, grid 256": (1, 4), "DDIM, grid 256": (1, 4)},
    claims=(
        worse("aDDIM", "DDIM", (1, 2), "aDDIM worse than DDIM at 1 and 2 steps"),
        worse("DDIM", "aDDIM", (4, 8, 16), "DDIM worse than aDDIM from 4 steps on"),
        worse("DDIM", "aDDIM", (1, 2, 4), "DDIM worse than aDDIM up to 4 steps"),
    ),
)


def _variant(name: str, **changes: object) -> Callable[[int], Student]:
    return _maker(f"cd_{name}", "cd", **changes)


OPEN_POINTS = Table(
    title="Open points: one change at a time (CD)",
    rows={
        "as configured": CD,
        "weight sqrt(SNR + 1)": CD_SQRT,
        "dropout 0.1, same mask": _variant("dropout_same", model__dropout=0.1),
        "dropout 0.1, two masks": _variant(
            "dropout_two", model__dropout=0.1, consistency__same_dropout=False
        ),
        "from scratch": _variant("scratch", teacher__initialize_student=False),
        "Huber epsilon 1": _variant("huber_1", consistency__huber_epsilon=1.0),
        "eta 0.5": _variant("eta_0.5", consistency__eta=0.5),
        "eta 1": _variant("eta_1", consistency__eta=1.0),
        "norm per element": _variant("norm_element", consistency__norm="element"),
        "weight max(SNR, 1)": _variant(
            "weight_truncated", consistency__weight="truncated_snr"
        ),
        "norm squared": _variant("norm_squared", consistency__norm="squared"),
        "sqrt(SNR + 1), per element": _variant(
            "weight_sqrt_element",
            consistency__weight="sqrt_snr_plus_1",
            consistency__norm="element",
        ),
        "target averaged, 0.95": _variant(
            "target_0.95", consistency__target_decay=0.95
        ),
        "learning rate 5e-4": _variant("lr_5e-4", training__learning_rate=5e-4),
        "learning rate 2e-3": _variant("lr_2e-3", training__learning_rate=2e-3),
        "no decay of the rate": _variant("no_decay", training__decay="constant"),
        "EMA 0.95": _variant("ema_0.95", training__ema_decay=0.95),
    },
    steps=(1, 4),
    claims=(
        worse(
            "as configured",
            "weight sqrt(SNR + 1)",
            (1, 4),
            "weight SNR + 1 worse than its root",
        ),
        worse("from scratch", "as configured", (1, 4), "from scratch is worse"),
        worse(
            "dropout 0.1, two masks",
            "dropout 0.1, same mask",
            (1, 4),
            "two dropout masks worse than one",
        ),
        worse("as configured", "Huber epsilon 1", (1,), "epsilon 1e-4 worse than 1"),
    ),
)

TABLES: Mapping[str, Table] = {
    "table1": TABLE_1,
    "table4": TABLE_4,
    "table3": TABLE_3,
    "budget": BUDGET,
    "table2": TABLE_2,
    "open": OPEN_POINTS,
}
"""Name on the command line to table, in the order in which they are run."""
