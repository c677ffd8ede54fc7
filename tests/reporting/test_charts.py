"""Charts: points where they belong, ticks that are round, no colour of their own."""

import re

import pytest

from multistep_cm.reporting import charts
from multistep_cm.reporting.charts import (
    Chart,
    Rule,
    Series,
    chart_figure,
    number,
    ticks,
)


def make(*series: Series, **values: object) -> str:
    return chart_figure(Chart("a title", "steps", "loss", series, **values))  # type: ignore[arg-type]


def places(figure: str) -> list[tuple[float, float]]:
    """Corners of the first line."""
    found = re.search(r'class="line" d="M([^"]+)"/>', figure)
    assert found
    return [tuple(map(float, p.split())) for p in found[1].split("L")]  # type: ignore[misc]


def test_a_log_scale_puts_powers_at_equal_distances() -> None:
    figure = make(Series("a", [(1, 0.001), (2, 0.01), (4, 0.1)]), x_scale="log2")
    (x1, y1), (x2, y2), (x3, y3) = places(figure)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert charts.LEFT < x1 < x3 < charts.WIDTH - charts.RIGHT
    assert charts.HEIGHT - charts.BOTTOM > y1 > y3 > charts.TOP


def test_points_that_cannot_be_drawn_are_left_out() -> None:
    bad = [(0, 1.0), (1, 0.0), (2, float("nan")), (3, -1.0), (4, float("inf"))]
    assert len(places(make(Series("a", [*bad, (5, 2.0)])))) == 2
    assert make(Series("a", bad[1:])) == ""
    assert make() == ""


def test_one_point_or_a_constant_is_a_chart() -> None:
    for points in ([(4, 0.1)], [(0, 1.0), (100, 1.0)], [(0.0, 0.0)]):
        figure = make(Series("a", points), y_scale="linear")
        assert "NaN" not in figure.replace("nan", "NaN")
        assert len(places(figure)) == len(points)


def test_rules_widen_the_axis_and_are_named() -> None:
    figure = make(Series("a", [(1, 1.0), (2, 2.0)]), rules=[Rule("floor", 0.01)])
    y = float(re.search(r'class="rule r0" d="M\d+ ([\d.]+)H', figure)[1])  # type: ignore[index]
    assert y > places(figure)[0][1]
    assert "floor: 0.01" in figure


def test_names_are_escaped_and_points_say_what_they_are() -> None:
    figure = make(Series("<a&b>", [(1, 0.25)]), markers=True)
    assert "<a&b>" not in figure
    assert "<title>&lt;a&amp;b&gt;, steps 1: 0.25</title>" in figure


def test_colours_are_left_to_the_page() -> None:
    lines = [Series(str(i), [(1, 1.0), (2, 2.0 + i)]) for i in range(10)]
    figure = make(*lines, markers=True) + make(*lines, ramp=True)
    assert not re.search(r"#[0-9a-f]{3,6}\b|rgb|black|white", figure)
    hues = [int(hue) for hue in re.findall(r"--hue:(\d+)", figure)]
    assert len(set(hues)) == 10


@pytest.mark.parametrize(
    ("low", "high", "scale", "expected"),
    [
        (0.0019, 0.4, "log", [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2]),
        (0.005, 0.0061, "log", [0.005, 0.0055, 0.006]),
        (1e-6, 3.0, "log", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
        (0.0, 5000.0, "linear", [0, 2000, 4000]),
        (-1.0, 1.0, "linear", [-1, -0.5, 0, 0.5, 1]),
        (0.9, 140.0, "log2", [1, 4, 128]),
    ],
)
def test_ticks(low: float, high: float, scale: str, expected: list[float]) -> None:
    found = ticks(low, high, scale, [4, 1, 128, 4])  # type: ignore[arg-type]
    assert found == pytest.approx(expected)


def test_ticks_are_few() -> None:
    assert len(ticks(1e-30, 1e30, "log", [])) <= 8
    assert len(ticks(1, 2**20, "log2", [2.0**i for i in range(21)])) <= 9


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0023, "0.0023"),
        (1e-5, "1e-5"),
        (12_000, "12k"),
        (5000, "5000"),
        (1e7, "1e7"),
        (0, "0"),
        (3.14159, "3.142"),
        (0.00091234, "9.123e-4"),
    ],
)
def test_numbers_are_short(value: float, expected: str) -> None:
    assert number(value) == expected
