"""The measured samplers as Markdown tables: samplers down, network calls across."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

Results: TypeAlias = Mapping[str, Any]
"""What results.json holds; `sampling.Results` says what that is."""

HEADINGS: Mapping[str, str] = {
    "sliced_wasserstein": "Sliced Wasserstein distance",
    "frechet_distance": "Fréchet distance",
    "variance_ratio": "Variance ratio",
    "flow_error": "Distance to the end of the exact flow, root mean square",
}
EMPTY = "-"


def significant(value: float) -> str:
    """Three significant digits, never with an exponent, such as `0.00123`."""
    return np.format_float_positional(value, 3, fractional=False, trim="-")


FORMATS: Mapping[str, Callable[[float], str]] = {
    "sliced_wasserstein": significant,
    "frechet_distance": significant,
    "variance_ratio": "{:.3f}".format,
    "flow_error": significant,
}


def show(metric: str, value: float | None) -> str:
    """A number as the tables show it; `-` for one that was not measured."""
    return EMPTY if value is None else FORMATS[metric](value)


def find(
    results: Results, preset: str, method: str, budget: int | None, key: str
) -> Any:
    """One entry of one row, or None when it was not measured."""
    wanted = (preset, method, budget)
    for row in results["rows"]:
        if (row["preset"], row["method"], row["budget"]) == wanted:
            return row.get(key)
    return None


def presets_of(results: Results) -> list[str]:
    """The measured presets, in the order in which they were measured."""
    return list(results["floors"])


def methods_of(results: Results) -> list[str]:
    """The measured samplers, in the order in which they were measured."""
    return list(dict.fromkeys(row["method"] for row in _sampled(results)))


def budgets_of(results: Results, preset: str | None = None) -> list[int]:
    """The numbers of calls allowed, increasing; None: those of all presets."""
    found = {
        row["budget"] for row in _sampled(results) if preset in (None, row["preset"])
    }
    return sorted(found)


def _sampled(results: Results) -> list[Mapping[str, Any]]:
    # The exact flow has a row too, without a budget.
    return [row for row in results["rows"] if row["budget"] is not None]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is numbers."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, *rows]]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(header) - 1), *lines[1:]])


def preset_section(results: Results, preset: str) -> str:
    """A heading, and one table for each measure."""
    budgets = budgets_of(results, preset)
    parts = [f"### {preset}"]
    for metric, heading in HEADINGS.items():
        rows = []
        for method in methods_of(results):
            values = [find(results, preset, method, n, metric) for n in budgets]
            if any(value is not None for value in values):
                rows.append([method, *(show(metric, value) for value in values)])
        if rows:
            parts.append(f"{heading}{_compared_with(results, preset, metric)}:")
            parts.append(markdown(["calls", *map(str, budgets)], rows))
    return "\n\n".join(parts)


def _compared_with(results: Results, preset: str, metric: str) -> str:
    """The floor in words, and what the exact flow of the same noise gets."""
    floor = results["floors"][preset].get(metric)
    if floor is None:
        return ""
    text = f" (floor {show(metric, floor['mean'])} ± {significant(floor['spread'])}"
    flow = find(results, preset, "exact_flow", None, metric)
    return f"{text})" if flow is None else f"{text}, exact flow {show(metric, flow)})"
