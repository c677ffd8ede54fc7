"""Which average is the best: what a sentence says of it, and what is drawn."""

from typing import Any

import pytest

from multistep_cm.reporting.averages import best_decays, best_of_runs, decay_charts
from multistep_cm.reporting.content import Measured
from multistep_cm.reporting.curves import quality_charts

BEGIN = "best EMA decay of cd, 4 steps by Fréchet distance: "


def row(decay: Any, distance: Any, std: Any = 0.001, **values: Any) -> dict[str, Any]:
    return {
        "method": "cd",
        "steps": 4,
        "network_calls": 4,
        "train_step": 8,
        "ema_decay": decay,
        "frechet_distance": distance,
        "frechet_distance_std": std,
        "pixel_frechet_distance": 1.0,
        **values,
    }


@pytest.mark.parametrize(
    ("distances", "said"),
    [
        ((0.3, 0.1, 0.2), "0.99 with 0.1000 ± 0.0010, then 0.999 with 0.2000 ± 0.0010"),
        (
            (0.3, 0.2, 0.1),
            "0.999 with 0.1000 ± 0.0010, then 0.99 with 0.2000 ± 0.0010: no larger one "
            "was measured",
        ),
        (
            (0.1, 0.2, 0.3),
            "0.9 with 0.1000 ± 0.0010, then 0.99 with 0.2000 ± 0.0010: no smaller one "
            "was measured",
        ),
        # The spread of a difference of two independent ones is 0.00141.
        (
            (0.3, 0.1014, 0.1),
            "0.999 with 0.1000 ± 0.0010, then 0.99 with 0.1014 ± 0.0010: closer than "
            "the spread",
        ),
        (
            (0.1015, 0.3, 0.1),
            "0.999 with 0.1000 ± 0.0010, then 0.9 with 0.1015 ± 0.0010: no larger one "
            "was measured",
        ),
    ],
)
def test_the_best_and_how_sure_it_is(distances: tuple[float, ...], said: str) -> None:
    decays = (0.9, 0.99, 0.999)
    rows = [row(*each) for each in zip(decays, distances, strict=True)]
    assert best_decays(rows) == [BEGIN + said]
    assert best_decays(rows[::-1]) == [BEGIN + said]


def test_only_what_differs_in_its_average_alone_is_compared() -> None:
    one = row(0.9, 0.1)
    for other in ({"steps": 2}, {"train_step": 4}, {"seed": 1}, {"method": "ct"}):
        assert best_decays([one, row(0.99, 0.2, **other)]) == []
    both = [one, row(0.99, 0.2), row(0.9, 0.4, steps=1), row(0.99, 0.3, steps=1)]
    assert [line.partition(":")[0] for line in best_decays(both)] == [
        "best EMA decay of cd, 4 steps by Fréchet distance",
        "best EMA decay of cd, 1 step by Fréchet distance",
    ]


def test_fid_is_the_main_measure_where_all_have_it() -> None:
    rows = [row(0.9, 0.1, fid=3.0), row(0.99, 0.2, fid=2.0)]
    (line,) = best_decays(rows)
    assert line == (
        "best EMA decay of cd, 4 steps by FID: 0.99 with 2.0000, then 0.9 with 3.0000: "
        "no larger one was measured"
    )
    del rows[0]["fid"]
    assert best_decays(rows)[0].startswith(BEGIN)
    assert best_decays([row(0.9, None), row(0.99, 0.1)])[0].startswith(
        "best EMA decay of cd, 4 steps by Fréchet distance in pixels: "
    )


@pytest.mark.parametrize("decay", [None, "x", [1], 1.0, 2.0, -1.0, float("nan")])
def test_what_is_no_decay_is_passed_over(decay: Any) -> None:
    rows = [row(0.9, 0.1), row(decay, 0.2)]
    assert best_decays(rows) == []
    assert decay_charts([Measured("cd4", rows, {})]) == []


def test_distance_against_the_steps_averaged() -> None:
    rows = [row(0.99, 0.2), row(0.5, 0.3), row(0.0, "nan"), row(0.99, 0.4, steps=8)]
    features, pixels = decay_charts([Measured("cd4", rows, {})])
    (line,) = features.series
    assert line.name == "cd, 4 steps"
    assert line.points == [(2.0, 0.3), (pytest.approx(100.0), 0.2)]
    assert [x for x, _ in pixels.series[0].points] == [1.0, 2.0, pytest.approx(100)]
    two = [Measured(name, rows, {}) for name in ("a", "b")]
    assert [line.name for line in decay_charts(two)[0].series] == [
        "cd, 4 steps (a)",
        "cd, 4 steps (b)",
    ]
    assert all("of a, cd" in x or "of b, cd" in x for x in best_of_runs(two))


def test_the_quality_curve_is_of_the_main_average() -> None:
    rows = [
        row(0.9, 0.1),
        row(0.99, 0.2),
        row(0.9, 0.05, steps=8, network_calls=8),
    ]
    chart = quality_charts([Measured("cd4", rows, {}, ema_decay=0.99)])[0]
    assert {line.name: line.points for line in chart.series} == {
        "cd": [(4.0, 0.2)],
        "cd, EMA 0.9": [(8.0, 0.05)],
    }
