"""Result rows as a text table."""

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS: Mapping[str, tuple[str, str]] = {
    "run": ("run", "{}"),
    "method": ("method", "{}"),
    "steps": ("steps", "{}"),
    "ema_decay": ("EMA decay", "{}"),
    "network_calls": ("network calls", "{}"),
    "frechet_distance": ("Fréchet distance", "{:.4f}"),
    "frechet_distance_std": ("±", "{:.4f}"),
    "pixel_frechet_distance": ("in pixels", "{:.4f}"),
    "pixel_frechet_distance_std": ("±", "{:.4f}"),
    "class_accuracy": ("class accuracy", "{:.1%}"),
    "variance_ratio": ("variance ratio", "{:.3f}"),
    "fid": ("FID", "{:.3f}"),
    "sfid": ("sFID", "{:.3f}"),
    "inception_score": ("IS", "{:.2f}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "images_per_second": ("images/s", "{:,.0f}"),
}
"""Key of a row to the heading and the format of its column."""


def format_rows(
    rows: Sequence[Mapping[str, Any]], floor: float | None, with_decay: bool = False
) -> str:
    """A Markdown table of result rows, with the floor of the distance below it.

    `with_decay` is for rows of several averages of the weights.

    Numbers that a row does not have are left empty, columns that no row fills are left
    out; without a floor there is no line.
    """
    columns = {
        key: column
        for key, column in COLUMNS.items()
        if any(row.get(key) is not None for row in rows)
        and (with_decay or key != "ema_decay")
    }
    lines = [[heading for heading, _ in columns.values()]]
    lines += [
        [
            "" if row.get(key) is None else form.format(row[key])
            for key, (_, form) in columns.items()
        ]
        for row in rows
    ]
    text = align(lines)
    if floor is not None:
        text += f"\n\nfloor (real images against real images): {floor:.4f}"
    return text


def align(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells, the first line being the headings."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)
