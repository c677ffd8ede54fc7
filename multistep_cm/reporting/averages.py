"""Which average of the weights is the best: sentences and charts of several decays."""

import collections
import math
from collections.abc import Sequence

from multistep_cm.reporting.charts import Chart, Series
from multistep_cm.reporting.content import Measured
from multistep_cm.reporting.curves import CURVES, Row, as_number, row_name

SAME_IMAGES = ("run", "steps", "train_step", "seed", "num_images")
"""Rows that agree in these and in their way differ in their average alone."""


def best_decays(rows: Sequence[Row]) -> list[str]:
    """A sentence for each way that was measured with several averages: the best one.

    It is told by the main distance, FID where there is one, with the spread and the
    next best. A difference within the spread (as if the two were measured on images of
    their own) is called so; the best at an end of what was measured is called so too.
    """
    return [sentence for group in _groups(rows) for sentence in _sentence(group)]


def best_of_runs(measured: Sequence[Measured]) -> list[str]:
    """The same of all runs, which are named where they are several."""
    is_alone = len(measured) == 1
    return best_decays(
        [
            row if is_alone else {**row, "run": run.run}
            for run in measured
            for row in run.rows
        ]
    )


def decay_charts(measured: Sequence[Measured]) -> list[Chart]:
    """Each distance against the length of the average, 1 / (1 - decay) steps.

    A line for each run and way, a chart for each distance that was measured with
    several averages.
    """
    charts = []
    for key, (name, _) in CURVES.items():
        series = []
        for run in measured:
            for group in _groups(run.rows):
                points = [
                    (1 / (1 - decay), value)
                    for decay, row in group
                    if (value := as_number(row.get(key))) is not None
                ]
                if len(points) > 1:
                    of_run = "" if len(measured) == 1 else f" ({run.run})"
                    series.append(Series(f"{_name(group[0][1])}{of_run}", points))
        if series:
            charts.append(
                Chart(
                    f"{name} against the average of the weights (lower is better)",
                    "steps averaged, 1 / (1 - EMA decay)",
                    name,
                    series,
                    x_scale="log2",
                    markers=True,
                )
            )
    return charts


def _groups(rows: Sequence[Row]) -> list[list[tuple[float, Row]]]:
    """Decays and rows that differ in it alone, two at least, the smallest first."""
    groups: dict[str, dict[float, Row]] = collections.defaultdict(dict)
    for row in rows:
        decay = as_number(row.get("ema_decay"))
        if decay is not None and 0 <= decay < 1:
            same = [row_name(row), *(row.get(key) for key in SAME_IMAGES)]
            groups[repr(same)][decay] = row
    return [
        sorted(group.items(), key=lambda item: item[0])
        for group in groups.values()
        if len(group) > 1
    ]


def _sentence(group: Sequence[tuple[float, Row]]) -> list[str]:
    """None where no distance is known of all."""
    key = next((key for key in CURVES if _are_known(group, key)), None)
    if key is None:
        return []
    found = [
        (as_number(row[key]) or 0.0, decay, as_number(row.get(f"{key}_std")))
        for decay, row in group
    ]
    best, following = sorted(found, key=lambda each: each[:2])[:2]
    said = ""
    if best[2] is not None and following[2] is not None:
        is_close = following[0] - best[0] <= math.hypot(best[2], following[2])
        said = ": closer than the spread" if is_close else ""
    if not said and best[1] == group[-1][0]:
        said = ": no larger one was measured"
    if not said and best[1] == group[0][0]:
        said = ": no smaller one was measured"
    row = group[0][1]
    of_run = f"{row['run']}, " if row.get("run") else ""
    return [
        f"best EMA decay of {of_run}{_name(row)} by {CURVES[key][0]}: "
        f"{_value(*best)}, then {_value(*following)}{said}"
    ]


def _are_known(group: Sequence[tuple[float, Row]], key: str) -> bool:
    return all(as_number(row.get(key)) is not None for _, row in group)


def _name(row: Row) -> str:
    """The way and its steps."""
    steps = row.get("steps")
    return f"{row_name(row)}, {steps} step{'' if steps == 1 else 's'}"


def _value(distance: float, decay: float, deviation: float | None) -> str:
    spread = "" if deviation is None else f" ± {deviation:.4f}"
    return f"{decay} with {distance:.4f}{spread}"
