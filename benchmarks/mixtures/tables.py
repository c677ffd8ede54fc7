"""The rows of `python -m benchmarks.mixtures` as the tables of docs/truth.md."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.documents import replace_between, split_at_marks
from benchmarks.mixtures.measures import Yardstick
from benchmarks.samplers.measures import sliced_wasserstein
from multistep_cm.errors import UserError
from multistep_cm.files import write_text

Row: TypeAlias = dict[str, Any]
"""method, steps, seed, and a float for each measure that was taken."""

METHODS: Mapping[str, str] = {
    "exact_ddim": "exact teacher, DDIM",
    "mlp_ddim": "MLP teacher, DDIM",
    "cd_exact": "CD, exact teacher",
    "cd_mlp": "CD, MLP teacher",
    "ct": "CT",
}

MEASURES: Mapping[str, str] = {
    "map_error": "Map error: RMS distance of z_0 to the exact z_0 of the same z_1",
    "far_share": "Share of z_0 further than 0.5 from the exact place",
    "median_error": "Median distance of z_0 to the exact z_0",
    "segment_error": "Segment error: RMS distance at the segments' ends",
    "sliced_wasserstein": "Sliced Wasserstein-1 distance of the samples to true draws",
}
"""Key of a row to the heading of its table."""


def preset_result(rows: Sequence[Row], yardstick: Yardstick) -> dict[str, Any]:
    """All that is known about one preset, for results.json."""
    exact = sliced_wasserstein(yardstick.z_0, yardstick.data, yardstick.directions)
    return {
        "floor": yardstick.floor.mean,
        "floor_spread": yardstick.floor.spread,
        "exact_flow": exact,
        "solver_error": yardstick.solver_error,
        "rows": list(rows),
    }


def one_line(row: Row) -> str:
    """A row for the terminal."""
    numbers = " ".join(f"{key} {row[key]:.4f}" for key in MEASURES if key in row)
    return f"{row['method']} steps {row['steps']} seed {row['seed']}: {numbers}"


def format_preset(result: Mapping[str, Any]) -> str:
    """The tables of one preset, one for each measure, in Markdown."""
    parts = []
    for measure, heading in MEASURES.items():
        parts.append(f"{heading}.\n\n{format_measure(result['rows'], measure)}\n")
    floor, spread = result["floor"], result["floor_spread"]
    solver = result["solver_error"]
    known = f"to {solver:.0e}" if solver else "in closed form"
    parts.append(
        f"Floor (true draws against true draws): {floor:.4f} ± {spread:.4f}; "
        f"the exact flow's own samples: {result['exact_flow']:.4f}. "
        f"The exact ends are known {known}."
    )
    return "\n".join(parts)


def format_measure(rows: Sequence[Row], measure: str) -> str:
    """One line a method, one column for each number of steps; mean ± spread of seeds.

    A single seed has no spread.
    """
    rows = [row for row in rows if measure in row]
    counts = sorted({row["steps"] for row in rows})
    lines = [["steps", *map(str, counts)]]
    for method, name in METHODS.items():
        cells = []
        for steps in counts:
            kind = (method, steps)
            mine = [r[measure] for r in rows if (r["method"], r["steps"]) == kind]
            cells.append(_cell(mine))
        lines.append([name, *cells])
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|---" * len(lines[0]) + "|")
    return "\n".join(text)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.4f}"


CHOICES = "choices"
"""What stands for a preset in the marks of `mixtures.choices`."""


def marks(preset: str) -> tuple[str, str]:
    """Between which a document holds the tables of a preset."""
    module = "mixtures.choices" if preset == CHOICES else "mixtures"
    command = f"python -m benchmarks.{module}"
    return f"<!-- {preset}: {command} -->", f"<!-- end of {preset} -->"


def check_marks(document: Path, presets: Sequence[str]) -> None:
    """UserError when the document cannot be read or lacks a mark."""
    text = _read(document)
    for preset in presets:
        split_at_marks(text, *marks(preset), name=str(document))


def write_tables(document: Path, results: Mapping[str, Any]) -> None:
    """Replace the tables of the presets in `results`."""
    text = _read(document)
    for preset, result in results.items():
        text = replace_between(
            text, *marks(preset), format_preset(result), name=str(document)
        )
    write_text(document, text)


def copy_picture(picture: Path, document: Path) -> None:
    """Into the folder `images` beside the document."""
    folder = document.parent / "images"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(picture, folder / picture.name)
    print(f"picture: {folder / picture.name}")


def _read(document: Path) -> str:
    try:
        return document.read_text()
    except OSError as error:
        raise UserError(f"{document} cannot be read: {error.strerror}") from error
