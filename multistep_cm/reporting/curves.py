"""From rows of numbers to charts: quality against steps, losses against training."""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from multistep_cm.reporting.charts import Chart, Point, Rule, Series
from multistep_cm.reporting.content import Measured

Row: TypeAlias = Mapping[str, Any]

CURVES: Mapping[str, tuple[str, str]] = {
    "fid": ("FID", "fid_floor"),
    "sfid": ("sFID", "sfid_floor"),
    "frechet_distance": ("Fréchet distance", "floor"),
    "pixel_frechet_distance": ("Fréchet distance in pixels", "pixel_floor"),
}
"""Key of a row to its name and the key of its floor; each has a chart if measured."""

TEACHER = "teacher_"
"""How the methods of a teacher's rows begin."""

MOST_POINTS = 240
"""Points of a loss curve: about one a pixel on a phone."""


def quality_charts(measured: Sequence[Measured]) -> list[Chart]:
    """Each distance against the number of network calls, with the teacher's line and
    the floor; a chart for each distance that any row has."""
    return [
        _quality_chart(measured, key) for key in CURVES if _points_of(measured, key)
    ]


def row_name(row: Row) -> str:
    """Method, and how it was sampled where that is out of the ordinary."""
    name = str(row.get("method", "?"))
    if row.get("guidance_scale"):
        name += f", guidance {row['guidance_scale']:g}"
        if row.get("guidance_interval"):
            low, high = row["guidance_interval"]
            name += f" from t = {low:g} to {high:g}"
    if row.get("x_variance", "analytic") != "analytic":
        name += f", x_var {row['x_variance']}"
    return name


def loss_charts(metrics: Sequence[Row]) -> list[Chart]:
    """The loss, and the loss in each bin of t, against the step."""
    names = list(dict.fromkeys(name for row in metrics for name in row))
    bins = sorted(name for name in names if name.startswith("loss_t/"))
    whole = Chart("Loss", "step", "loss", [Series("loss", curve(metrics, "loss"))])
    series = [Series(_bin_name(name), curve(metrics, name)) for name in bins]
    by_time = Chart("Loss by time t", "step", "loss", series, ramp=True)
    return [whole, by_time] if bins else [whole]


def curve(metrics: Sequence[Row], name: str) -> list[Point]:
    """Steps and values; many neighbouring rows become one, their mean.

    Rows without the value, or with one that is not finite, are left out.
    """
    points = [
        (float(row["step"]), value)
        for row in metrics
        if (value := as_number(row.get(name))) is not None
    ]
    size = -(-len(points) // MOST_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(_mean(x for x, _ in part), _mean(y for _, y in part)) for part in groups]


def as_number(value: Any) -> float | None:
    """A finite number, or None; `metrics.jsonl` holds others as strings."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _quality_chart(measured: Sequence[Measured], key: str) -> Chart:
    name, floor_key = CURVES[key]
    found = _points_of(measured, key)
    # Runs of one method make one line, unless they are of the same number of steps.
    lines: dict[str, dict[str, list[Point]]] = collections.defaultdict(dict)
    for method, run, point in found:
        lines[method].setdefault(run, []).append(point)
    series = []
    for method, runs in lines.items():
        points = [point for of_run in runs.values() for point in of_run]
        if len({x for x, _ in points}) == len(points):
            series.append(Series(method, sorted(points)))
        else:
            series += [
                Series(f"{method} ({run})", sorted(of_run))
                for run, of_run in runs.items()
            ]
    rules = []
    teachers = [
        (y, x, method) for method, _, (x, y) in found if method.startswith(TEACHER)
    ]
    if teachers:
        y, x, method = min(teachers)
        method = method.removeprefix(TEACHER)
        rules.append(Rule(f"teacher at its best ({method}, {x:g} calls)", y))
    floors = [as_number(run.facts.get(floor_key)) for run in measured]
    rules += [
        Rule("floor: real against real images", floor)
        for floor in dict.fromkeys(floor for floor in floors if floor is not None)
    ]
    return Chart(
        f"{name} against network calls (lower is better)",
        "network calls",
        name,
        series,
        rules,
        x_scale="log2",
        markers=True,
    )


def _points_of(measured: Sequence[Measured], key: str) -> list[tuple[str, str, Point]]:
    """Name of the way, run and point of every row that has the number.

    Of a way that was measured with several averages of the weights: the main one.
    """
    found = []
    for run in measured:
        of_main = {_way(row) for row in run.rows if _is_main(row, run)}
        for row in run.rows:
            x = as_number(row.get("network_calls", row.get("steps")))
            y = as_number(row.get(key))
            if x is None or y is None:
                continue
            if _is_main(row, run):
                found.append((row_name(row), run.run, (x, y)))
            elif _way(row) not in of_main:
                name = f"{row_name(row)}, EMA {row['ema_decay']}"
                found.append((name, run.run, (x, y)))
    return found


def _way(row: Row) -> tuple[str, str]:
    return row_name(row), str(row.get("steps"))


def _is_main(row: Row, run: Measured) -> bool:
    return row.get("ema_decay") in (None, run.ema_decay)


def _bin_name(name: str) -> str:
    """`loss_t/0.125_to_0.250` to what a legend says."""
    low, _, high = name.removeprefix("loss_t/").partition("_to_")
    return f"{low} to {high}"


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
