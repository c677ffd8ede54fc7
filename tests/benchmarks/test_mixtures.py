"""Students trained against truth: the command, the trainer, and the measures."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.mixtures import choices, figure, measures, students, tables
from benchmarks.mixtures.run import DOCUMENT, PRESETS, main
from benchmarks.mixtures.students import (
    EXACT,
    SCHEDULE,
    Problem,
    make_problem,
    teacher_trainer,
)
from multistep_cm.diffusion.parameterization import Conditioning, Denoiser
from multistep_cm.losses.denoising import make_denoising_loss
from multistep_cm.losses.signature import Params
from multistep_cm.truth import flows, mixtures, presets

TINY = ["--presets", "two_normals", "--student_steps", "1", "2", "--iterations=4"]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem("two_normals")


@pytest.mark.slow
def test_the_whole_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(students, "BLOCKS", 1)  # compiles faster
    monkeypatch.setattr(figure, "PANELS", (2,))
    begin, end = tables.marks("two_normals")
    document = tmp_path / "docs" / "truth.md"
    document.parent.mkdir()
    document.write_text(f"before\n{begin}\n{end}\nafter\n")
    workdir = tmp_path / "runs"
    places = [f"--workdir={workdir}", f"--document={document}"]
    assert main([*TINY, "--seeds=2", "--num_samples=64", *places]) == 0

    result = json.loads((workdir / "results.json").read_text())["presets"]
    rows = result["two_normals"]["rows"]
    kinds = {(row["method"], row["steps"], row["seed"]) for row in rows}
    teachers = {(m, k) for m in ("exact_ddim", "mlp_ddim") for k in (1, 2, 256)}
    learned = {(m, k) for m in ("cd_exact", "cd_mlp", "ct") for k in (1, 2)}
    assert {kind[:2] for kind in kinds} == teachers | learned
    assert len(kinds) == len(rows) == 2 * len(learned) + 3 + 2 * 3
    for row in rows:
        assert ("segment_error" in row) == (row["steps"] != 256)
        assert row["map_error"] > 0
        assert row["sliced_wasserstein"] > 0
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("| CD, exact teacher |") == len(tables.MEASURES)
    assert (document.parent / "images" / "figure1.png").stat().st_size > 0
    assert "results.json" in capsys.readouterr().out


def test_the_document_of_the_repository_has_its_marks() -> None:
    tables.check_marks(DOCUMENT, [*PRESETS, tables.CHOICES])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--presets", "rings"], "--presets has 'rings'"),
        (["--iterations=0"], "--iterations is 0"),
        (["--seeds=0"], "--seeds is 0"),
        (["--num_samples=0"], "--num_samples is 0"),
        (["--student_steps", "4", "0"], "--student_steps has 0"),
        (["--document=absent.md"], "absent.md cannot be read"),
        ([f"--document={__file__}"], "lacks the marks"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*arguments, f"--workdir={tmp_path / 'runs'}"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_an_unknown_variation_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert choices.main(["cd_nothing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_variation_has_known_options() -> None:
    for options, _ in choices.VARIATIONS.values():
        dataclasses.replace(choices.BASE, **options)


def test_the_exact_teacher_is_the_posterior_mean() -> None:
    """Of eight normals, weighed by Bayes' rule in numpy."""
    ring = make_problem("ring")
    z = np.random.default_rng(0).normal(size=(16, 2))
    t = np.linspace(0.05, 0.95, 16)
    logsnr = np.asarray(SCHEDULE.logsnr(t), np.float64)[:, None]
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))
    angles = np.arange(8) * np.pi / 4
    means = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    variance = (0.1 * alpha) ** 2 + sigma**2
    delta = z[:, None] - alpha[:, None] * means
    weights = np.exp(-(delta**2).sum(2) / (2 * variance))
    weights /= weights.sum(axis=1, keepdims=True)
    each = means + (alpha * 0.1**2 / variance)[:, None] * delta
    expected = (weights[..., None] * each).sum(axis=1)
    points, times = jnp.asarray(z, jnp.float32), jnp.asarray(t, jnp.float32)
    found = ring.predict(EXACT, points, times, {}, None)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_trainer_approaches_the_optimum(problem: Problem) -> None:
    """The denoising loss has the exact denoiser's as its lower bound."""
    first = problem.initial(jax.random.key(0))
    trained = teacher_trainer(problem, 300)(first, jax.random.key(1), {})
    loss = jax.jit(make_denoising_loss(problem.predict, SCHEDULE))
    x = mixtures.draw(problem.mixture, jax.random.key(2), 4096)
    keys = jax.random.split(jax.random.key(3), 4096)

    def of(params: Params) -> float:
        return float(loss(params, {"image": x, "cond": {}}, keys, jnp.int32(0), {})[0])

    start, end, best = of(first), of(trained), of(EXACT)
    assert start - best > 0.2
    assert 0 < end - best < 0.1 * (start - best)


@pytest.mark.parametrize("student_steps", [1, 4])
def test_the_exact_function_has_no_error(x64: None, student_steps: int) -> None:
    """And the denoiser, which is not the function, has one."""
    mixture = presets.two_normals("float64")
    exact = mixtures.denoiser(mixture, SCHEDULE)
    function = flows.consistency_function(
        flows.transport(mixture), SCHEDULE, student_steps, exact
    )

    def errors(denoiser: Denoiser) -> tuple[float, float]:
        def predict(
            params: Params,
            z_t: jax.Array,
            t: jax.Array,
            cond: Conditioning,
            dropout_key: jax.Array | None,
        ) -> jax.Array:
            return denoiser(z_t.astype(jnp.float64), t.astype(jnp.float64), cond)

        samples = measures.measure_samples(
            predict, {}, SCHEDULE, yardstick, student_steps
        )
        segment = measures.segment_error(predict, {}, SCHEDULE, probe)
        return samples["map_error"], segment

    yardstick = measures.make_yardstick("two_normals", SCHEDULE, 256)
    probe = measures.make_probe("two_normals", SCHEDULE, student_steps, 32, 256)
    assert max(errors(function)) < 2e-4
    assert min(errors(exact)) > 0.05


def test_the_ring_is_solved_and_its_floor_is_that_of_draws() -> None:
    yardstick = measures.make_yardstick("ring", SCHEDULE, 512)
    assert yardstick.z_1.dtype == np.float32
    assert yardstick.z_0.dtype == yardstick.data.dtype == np.float64
    assert 0 < yardstick.solver_error < 1e-5
    result = tables.preset_result([], yardstick)
    floor, spread = result["floor"], result["floor_spread"]
    assert abs(result["exact_flow"] - floor) < 4 * spread
