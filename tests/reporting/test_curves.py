"""From rows to lines: what is joined, what is left out, what is averaged."""

import pytest

from multistep_cm.reporting.content import Measured
from multistep_cm.reporting.curves import (
    MOST_POINTS,
    curve,
    loss_charts,
    quality_charts,
    row_name,
)
from tests.reporting.pages import metrics, rows


def test_runs_of_one_method_make_one_line() -> None:
    measured = [
        Measured("teacher", rows("teacher_ddim", 128, 8, 1), {"floor": 0.5}),
        Measured("cd4", rows("cd", 4), {"floor": 0.5}),
        Measured("cd1", rows("cd", 1), {"floor": None}),
    ]
    feature, pixel = quality_charts(measured)
    lines = {line.name: line.points for line in feature.series}
    assert [x for x, _ in lines["teacher_ddim"]] == [1, 8, 128]
    value = 0.0123456789
    assert lines["cd"] == [(1, pytest.approx(value)), (4, pytest.approx(value / 4))]
    best, floor = feature.rules
    assert best.name == "teacher at its best (ddim, 128 calls)"
    assert best.y == pytest.approx(value / 128)
    assert floor.y == 0.5
    assert len(pixel.rules) == 1


def test_runs_of_the_same_steps_are_told_apart() -> None:
    measured = [Measured(f"seed{i}", rows("cd", 4), {}) for i in range(2)]
    names = [line.name for line in quality_charts(measured)[0].series]
    assert names == ["cd (seed0)", "cd (seed1)"]


def test_another_way_to_sample_is_another_line() -> None:
    plain = rows("teacher_addim", 8)
    guided = [{**row, "guidance_scale": 0.5, "x_variance": "measured"} for row in plain]
    charts = quality_charts([Measured("teacher", plain + guided, {})])
    assert [line.name for line in charts[0].series] == [
        "teacher_addim",
        "teacher_addim, guidance 0.5, x_var measured",
    ]


def test_rows_without_numbers_make_no_chart() -> None:
    row = {"method": "cd", "steps": 4, "frechet_distance": None, "fid": 3.5}
    (chart,) = quality_charts([Measured("a", [row, {}], {})])
    assert chart.y_label == "FID"
    assert chart.series[0].points == [(4.0, 3.5)]
    assert quality_charts([]) == []


def test_losses_are_thinned_by_means() -> None:
    many = [{"step": step, "loss": float(step % 2)} for step in range(10_000)]
    points = curve(many, "loss")
    assert len(points) <= MOST_POINTS
    assert all(y == 0.5 for _, y in points)
    assert points[0][0] == pytest.approx(20.5)
    assert curve(metrics(5), "loss")[3] == (
        250.0,
        pytest.approx(0.2),
    )  # without the nan


def test_each_bin_of_time_is_a_line() -> None:
    whole, by_time = loss_charts(metrics(5))
    assert [line.name for line in whole.series] == ["loss"]
    assert [line.name for line in by_time.series] == [
        "0.000 to 0.500",
        "0.500 to 1.000",
    ]
    assert len(loss_charts([{"step": 1, "loss": 2.0}])) == 1


def test_an_interval_of_guidance_is_in_the_name() -> None:
    row = {"method": "cd", "guidance_scale": 0.5, "guidance_interval": [0.25, 1.0]}
    assert row_name(row) == "cd, guidance 0.5 from t = 0.25 to 1"
    assert row_name(row | {"guidance_interval": None}) == "cd, guidance 0.5"
