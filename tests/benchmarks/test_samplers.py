"""Samplers against truth: the measures in closed form, and the whole command."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from benchmarks.samplers import measures, run, sampling, summary
from benchmarks.samplers.angle_heun import sample_by_angle
from benchmarks.samplers.layout import FORMATS, HEADINGS, significant
from multistep_cm.diffusion.schedules import cosine
from multistep_cm.evaluation.frechet import Moments, frechet_distance
from multistep_cm.truth import flows, mixtures, presets

RANDOM = np.random.default_rng(0)


def test_sliced_wasserstein_of_a_shifted_set() -> None:
    """Every pair moves by the shift: the mean of |shift . direction|, which over the
    sphere in d = 3 is |shift| / 2."""
    points = RANDOM.normal(size=(50, 3))
    shift = np.array([3.0, 0.0, -4.0])
    directions = measures.random_directions(3, 4000)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1)
    moved = RANDOM.permutation(points + shift)
    found = measures.sliced_wasserstein(points, moved, directions)
    assert found == pytest.approx(np.abs(shift @ directions).mean(), rel=1e-12)
    assert found == pytest.approx(2.5, rel=0.05)


def test_sliced_wasserstein_is_scipys_in_one_dimension() -> None:
    a, b = RANDOM.normal(size=(40, 1)), RANDOM.exponential(size=(40, 1))
    found = measures.sliced_wasserstein(a, b, measures.random_directions(1))
    expected = scipy.stats.wasserstein_distance(a[:, 0], b[:, 0])
    assert found == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="expected one"):
        measures.sliced_wasserstein(a, b[1:], np.ones((1, 1)))


def test_distance_to_exact_moments() -> None:
    """Of diagonal Gaussians: |m1 - m2|^2 + sum (s1 - s2)^2."""
    one = measures.exact_moments(np.array([1.0, 0.0]), np.diag([4.0, 1.0]))
    two = measures.exact_moments(np.array([0.0, 2.0]), np.diag([1.0, 9.0]))
    np.testing.assert_allclose(one.covariance, np.diag([4.0, 1.0]))
    assert frechet_distance(one, two) == pytest.approx(1 + 4 + 1 + 4)
    assert measures.variance_ratio(one, two) == pytest.approx(0.5)
    samples = RANDOM.normal(size=(20, 2)) * [2.0, 1.0]
    ratio = measures.variance_ratio(Moments.of(samples), one)
    expected = samples.var(axis=0, ddof=1).sum() / 5
    assert ratio == pytest.approx(expected)


def test_floors_are_those_of_true_draws() -> None:
    """A variance ratio of 1 with spread sqrt(2 / n), for one normal."""
    truth = measures.Truth(
        RANDOM.normal(size=(200, 1)),
        measures.exact_moments(np.zeros(1), np.eye(1)),
        np.ones((1, 1)),
    )
    repeats = [RANDOM.normal(size=(200, 1)) for _ in range(400)]
    found = measures.floors(repeats, truth)
    assert set(found) == set(measures.METRICS)
    assert found["variance_ratio"].mean == pytest.approx(1, abs=0.02)
    assert found["variance_ratio"].spread == pytest.approx(0.1, rel=0.15)
    assert found["sliced_wasserstein"].mean > 0


def test_heun_by_angle_has_order_2(x64: None) -> None:
    schedule, mixture = cosine(), presets.two_normals("float64")
    z_1 = jnp.asarray(RANDOM.normal(size=(64, 1)))
    expected = jax.jit(flows.transport(mixture))(z_1, -15.0, 15.0)
    exact, counts = mixtures.denoiser(mixture, schedule), (64, 256)
    errors = [
        float(jnp.abs(sample_by_angle(exact, schedule, z_1, n) - expected).mean())
        for n in counts
    ]
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(order - 2) < 0.15
    assert errors[-1] < 1e-3


@pytest.mark.parametrize(
    ("method", "budget", "steps"),
    [("ddim", 8, 8), ("heun", 1, 1), ("heun", 2, 1), ("heun", 3, 2), ("heun", 8, 4)],
)
def test_steps_within_a_budget(method: str, budget: int, steps: int) -> None:
    assert sampling.steps_within(method, budget) == steps  # type: ignore[arg-type]


def results_of(distances: dict[str, list[float]]) -> sampling.Results:
    """Fréchet distances at 8 and 16 calls, with the floor 0.1 and its spread 0.01."""
    rows = [
        {"preset": "ring", "method": method, "budget": n, "frechet_distance": value}
        for method, values in distances.items()
        for n, value in zip((8, 16), values, strict=True)
    ]
    floors = {"ring": {"frechet_distance": {"mean": 0.1, "spread": 0.01}}}
    return {"floors": floors, "rows": rows}


def test_summary_numbers() -> None:
    results = results_of(
        {"ddim": [0.5, 0.11], "addim": [0.3, 0.1], "heun_angle": [0.25, 0.115]}
    )
    share = summary.share_taken_back(results, "ring", "addim", 8)
    assert share == pytest.approx(0.5)  # 0.2 of 0.4
    # DDIM is at its floor, or was not measured.
    assert summary.share_taken_back(results, "ring", "addim", 16) is None
    assert summary.share_taken_back(results, "ring", "addim", 32) is None
    duel = summary.duel(results, "ring", "frechet_distance", "addim", "heun_angle")
    assert duel == ([], [8])
    duel = summary.duel(results, "ring", "frechet_distance", "heun_angle", "addim")
    assert duel == ([8], [])
    assert summary.spans([1, 2, 8], [1, 2, 4, 8]) == "1-2, 8"
    assert summary.spans([], [1]) == ""


def test_significant_digits() -> None:
    assert significant(0.0012345) == "0.00123"
    assert significant(123456.0) == "123000"
    assert significant(1.0) == "1"


def cells(text: str, heading: str) -> dict[str, list[str]]:
    """The first Markdown table behind a heading, by the first column."""
    table = text.partition(heading)[2].partition("|")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    return {row[1]: row[2:-1] for row in rows[2:] if len(row) > 2}


@pytest.mark.slow
def test_the_whole_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ways = ["ddim", "addim_eta_1", "heun_uniform", "heun_angle", "ancestral"]
    # The others compile for seconds and go the same path.
    few = {name: sampling.WAYS[name] for name in ways}
    monkeypatch.setattr(sampling, "WAYS", few)
    document = tmp_path / "samplers.md"
    document.write_text(f"before\n{run.BEGIN}\nold\n{run.END}\nafter\n")
    workdir = tmp_path / "work"
    arguments = ["--presets=two_normals", "--calls=1,2", "--num_samples=64"]
    arguments += [f"--workdir={workdir}", f"--document={document}"]
    assert run.main(arguments) == 0
    results = json.loads((workdir / "results.json").read_text())
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "old" not in text
    assert (tmp_path / "images" / "samplers.png").stat().st_size > 0

    rows = {(row["method"], row["budget"]): row for row in results["rows"]}
    assert set(rows) == {("exact_flow", None), *((w, n) for w in ways for n in (1, 2))}
    section = text.partition("### two_normals")[2]
    for metric, heading in HEADINGS.items():
        shown = cells(section, heading)
        assert list(shown) == ways
        for way in ways:
            expected = [FORMATS[metric](rows[way, n][metric]) for n in (1, 2)]
            assert shown[way] == expected

    # One call is DDIM's mean for all; the full posterior variance is then the data's.
    for way in ("ddim", "heun_angle", "ancestral"):
        assert rows[way, 1]["variance_ratio"] < 1e-3
    assert rows["addim_eta_1", 1]["variance_ratio"] == pytest.approx(1, abs=0.4)
    assert rows["heun_uniform", 2]["calls"] == 1
    assert rows["ddim", 2]["flow_error"] < rows["ddim", 1]["flow_error"]

    # A second time nothing is measured, and nothing changes.
    capsys.readouterr()
    assert run.main(arguments) == 0
    assert "two_normals: nothing to measure" in capsys.readouterr().out
    assert json.loads((workdir / "results.json").read_text()) == results
    assert document.read_text() == text

    # Other settings do not mix with these.
    assert run.main([*arguments, "--seed=1"]) == 2
    assert "choose another --workdir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--presets=rings"], "no preset 'rings'; there are: two_normals, ring"),
        (["--calls=0"], "--calls is '0', expected positive whole numbers"),
        (["--calls=8,x"], "--calls is '8,x', expected positive whole numbers"),
        (["--presets=low_rank_64", "--num_samples=64"], "more than the 64 dimensions"),
        (["--document=absent.md"], "absent.md cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run.main([f"--workdir={tmp_path}", "--calls=1", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("samplers: ") and error.count("\n") == 1


def test_a_document_without_marks_is_said_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "doc.md"
    document.write_text("nothing here")
    assert run.main([f"--document={document}", f"--workdir={tmp_path}"]) == 2
    assert "lacks the marks" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_the_document_of_the_repository_has_its_marks() -> None:
    text = run.DOCUMENT.read_text()
    assert run.BEGIN in text and run.END in text
