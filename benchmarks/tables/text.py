"""Rows of many seeds as Markdown: means, spreads, and which claims hold."""

import math
import statistics
from collections.abc import Mapping
from typing import TypeAlias

from benchmarks.tables.layout import Cell, Claim, Table
from multistep_cm.evaluation.results import Row

Rows: TypeAlias = dict[Cell, dict[int, Row]]
"""A cell to its measured row for every seed."""

DISTANCES = {
    "in features": ("frechet_distance", "floor"),
    "in pixels": ("pixel_frechet_distance", "pixel_floor"),
}
"""Name of a distance to its key in a row, and to that of its floor."""

SCALE = 1000


def table_text(table: Table, rows: Rows, floors: Mapping[str, float]) -> str:
    """Both distances and the claims of a table, as Markdown.

    The floor is the distance between two halves of the real images; cells with fewer
    than all seeds say how many they have.
    """
    seeds = {seed for cell in rows.values() for seed in cell}
    parts = []
    for name, (key, floor) in DISTANCES.items():
        parts.append(f"**{table.title}: {SCALE} x Fréchet distance {name}**\n")
        parts.append(_grid(table, rows, key, len(seeds)))
        parts.append(f"\nfloor: {SCALE * floors[floor]:.1f}\n")
    if table.claims:
        parts.append("| does it hold? | features: seeds | pixels: seeds |")
        parts.append("|---|---|---|")
        for claim in table.claims:
            held = [
                f"{wins} of {tried}"
                for wins, tried in (
                    count_seeds(claim, rows, key) for key, _ in DISTANCES.values()
                )
            ]
            parts.append(f"| {claim.text} | {' | '.join(held)} |")
    return "\n".join(parts)


def count_seeds(claim: Claim, rows: Rows, key: str) -> tuple[int, int]:
    """In how many seeds the claim holds, of how many that have all its cells."""
    cells = {cell for pair in claim.pairs for cell in pair}
    seeds = set.intersection(*(set(rows.get(cell, {})) for cell in cells))

    def distance(cell: Cell, seed: int) -> float:
        """Of a student that diverged, infinity."""
        return float(rows[cell][seed].get(key, math.inf))

    wins = sum(
        all(
            distance(first, seed) > distance(second, seed)
            for first, second in claim.pairs
        )
        for seed in seeds
    )
    return wins, len(seeds)


def _grid(table: Table, rows: Rows, key: str, num_seeds: int) -> str:
    columns = sorted({*table.steps, *table.teacher})
    labels = [f"teacher_{m}" for m in ("ddim", "addim")] if table.teacher else []
    labels += list(table.rows)
    lines = ["| steps | " + " | ".join(map(str, columns)) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for label in labels:
        cells = [_cell(rows.get((label, k), {}), key, num_seeds) for k in columns]
        name = label.replace("teacher_ddim", "teacher, DDIM")
        name = name.replace("teacher_addim", "teacher, aDDIM")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(seeds: Mapping[int, Row], key: str, num_seeds: int) -> str:
    values = [SCALE * row[key] for row in seeds.values() if key in row]
    diverged = len(seeds) - len(values)
    text = f"{statistics.fmean(values):.1f}" if values else ""
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.1f}"
    if len(seeds) not in (0, num_seeds):
        text += f" ({len(seeds)})"
    return text + (f" {diverged} diverged" if diverged else "")
