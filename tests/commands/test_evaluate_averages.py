"""The best of several averages: measured in one call, never mixed up, shown."""

import functools
import json
import re
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
import pytest

from multistep_cm import config as configs
from multistep_cm.checkpoints import Checkpoints
from multistep_cm.commands.main import main
from multistep_cm.evaluation import classifier, evaluate
from multistep_cm.evaluation.results import read_results
from multistep_cm.inspection.collect import make_report
from multistep_cm.reporting.report import render
from multistep_cm.sharding.mesh import make_mesh
from tests.training.tiny import noisy_params, tiny_config

DECAYS = (0.99, 0.999, 0.9999)
"""The second is the main one."""

Sampled: TypeAlias = list[tuple[str, int, float]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)
    settings = functools.partial(classifier.TrainingSettings, num_steps=2)
    monkeypatch.setattr(classifier, "TrainingSettings", settings)


@pytest.fixture
def run(tmp_path: Path, digits_directory: Path) -> Path:
    """A teacher with three averages, each with weights of its own."""
    workdir = tmp_path / "teacher"
    workdir.mkdir()
    config = tiny_config(digits_directory, training__more_ema_decays=(0.99, 0.9999))
    (workdir / "config.json").write_text(configs.to_json(config))
    save(workdir, 8)
    return workdir


def save(workdir: Path, step: int) -> None:
    config = tiny_config()
    mesh = make_mesh(config.mesh, jax.devices())
    names = ("ema_0.99", "ema", "ema_0.9999")
    trees = {name: noisy_params(config, mesh, step + i) for i, name in enumerate(names)}
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(step, trees, {}, {})


def first_number(tree: Any) -> float:
    return float(jax.tree.leaves(tree)[0].ravel()[0])


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Sampled:
    """Method, steps and first weight of what was sampled.

    The images are noise, for nothing is compiled; each average has a brightness.
    """
    found: Sampled = []
    brightness: dict[float, int] = {}

    class Noise:
        def __init__(self, config: Any, way: Any, *_: Any) -> None:
            self.shape = (config.data.image_size,) * 2 + (config.data.channels,)
            self.way = way

        def __call__(
            self, params: Any, labels: np.ndarray, seed: int, report: Any
        ) -> np.ndarray:
            weight = first_number(params)
            found.append((self.way.method, self.way.num_steps, weight))
            report(len(labels))
            rng = np.random.default_rng(seed)
            noise = rng.integers(256, size=(len(labels), *self.shape), dtype=np.uint8)
            return noise // 2 ** brightness.setdefault(weight, len(brightness))

    monkeypatch.setattr(evaluate, "compile_generator", Noise)
    return found


def measure(run: Path, *words: str) -> int:
    return main(["evaluate", f"--workdir={run}", "--num_images=72", *words])


def rows_of(run: Path) -> list[dict[str, Any]]:
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    rows: list[dict[str, Any]] = found["rows"]
    return rows


def test_all_averages_in_one_call_and_the_best_is_named(
    run: Path, sampled: Sampled, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure(run, "--ema_decay=all", "--num_steps=2,4") == 0
    assert len(sampled) == len(set(sampled)) == 6
    assert len({weight for *_, weight in sampled}) == 3
    rows = rows_of(run)
    assert [(row["ema_decay"], row["steps"]) for row in rows] == [
        (decay, steps) for decay in DECAYS for steps in (2, 4)
    ]
    # The hash is that of the weights that were used.
    names = dict(zip(DECAYS, ("ema_0.99", "ema", "ema_0.9999"), strict=True))
    with Checkpoints(run) as checkpoints:
        for row in rows:
            sha256 = checkpoints.tree_sha256(8, names[row["ema_decay"]])
            assert row["weights_sha256"] == sha256
    assert len({row["weights_sha256"] for row in rows}) == 3
    said = capsys.readouterr()
    assert "sampling teacher: teacher_ddim 4, EMA 0.9999  72/72" in said.err
    table = [line for line in said.out.splitlines() if line.startswith("| teacher")]
    cells = [[cell.strip() for cell in line.split("|")[2:4]] for line in table]
    assert cells == [[str(steps), str(decay)] for steps in (2, 4) for decay in DECAYS]
    for steps in (2, 4):
        values = [
            (row["frechet_distance"], row["frechet_distance_std"], row["ema_decay"])
            for row in rows
            if row["steps"] == steps
        ]
        (best, spread, decay), (second, other, following), _ = sorted(values)
        assert best < second
        begin = f"best EMA decay of teacher_ddim, {steps} steps by Fréchet distance: "
        (line,) = [x for x in said.out.splitlines() if x.startswith(begin)]
        assert line.startswith(
            f"{begin}{decay} with {best:.4f} ± {spread:.4f}, "
            f"then {following} with {second:.4f} ± {other:.4f}"
        )


def test_a_stopped_call_goes_on_and_mixes_nothing(
    run: Path, sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[int, float]] = []
    keep = vars(evaluate)["keep_row"]

    def killed(workdir: Path, config: Any, row: Any, facts: Any) -> Any:
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append((row["steps"], row["ema_decay"]))
        return keep(workdir, config, row, facts)

    words = ("--ema_decay=0.9999,0.99", "--num_steps=2,4")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "keep_row", killed)
        with pytest.raises(KeyboardInterrupt):
            measure(run, *words)
    assert kept == [(2, 0.9999), (4, 0.9999), (2, 0.99)]
    before, first = rows_of(run), list(sampled)
    sampled.clear()
    assert measure(run, *words) == 0
    assert sampled == first[3:]
    assert rows_of(run)[:3] == before
    # The main average is none of them; then all is there, in whatever order asked.
    sampled.clear()
    assert measure(run, "--num_steps=2,4") == 0
    assert [steps for _, steps, _ in sampled] == [2, 4]
    sampled.clear()
    assert measure(run, "--ema_decay=all", "--num_steps=4,2") == 0
    assert not sampled
    # Other weights: each average anew.
    save(run, 20)
    assert measure(run, "--ema_decay=all", "--num_steps=2") == 0
    assert len(sampled) == 3
    found = {(r["steps"], r["ema_decay"]): r["train_step"] for r in rows_of(run)}
    assert found == {(s, d): 20 if s == 2 else 8 for s in (2, 4) for d in DECAYS}


def test_a_report_shows_what_the_average_does(run: Path, sampled: Sampled) -> None:
    assert measure(run, "--ema_decay=all", "--num_steps=2,4") == 0
    report = make_report([run], num_images=0)
    (measured,) = report.measured
    assert measured.ema_decay == 0.999
    page = render(report)
    title = "Fréchet distance against the average of the weights (lower is better)"
    assert f"<figcaption>{title}</figcaption>" in page
    assert "<p>best EMA decay of teacher_ddim, 2 steps by Fréchet distance: " in page
    for row in read_results(run)["rows"]:
        assert f'<data value="{row["frechet_distance"]!r}">' in page
        assert f'<data value="{row["ema_decay"]!r}">{row["ema_decay"]}</data>' in page
    commands = [line for line in report.commands if "evaluate" in line]
    assert len(commands) == 3
    decays = re.findall(r"--ema_decay=([\d.]+)", "".join(commands))
    assert sorted(decays) == ["0.99", "0.9999"]


@pytest.mark.parametrize("command", ["sample", "export", "evaluate"])
def test_an_average_that_is_not_tracked_is_refused(
    command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.iterdir())
    assert main([command, f"--workdir={run}", "--ema_decay=0.9"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--ema_decay is 0.9, but the run tracks only 0.999, 0.99, 0.9999: " in said
    assert sorted(run.iterdir()) == before


def test_decays_that_are_no_numbers(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure(run, "--ema_decay=0.9,best") == 2
    said = capsys.readouterr().err
    assert "'0.9,best', expected all or some of: 0.999, 0.99, 0.9999" in said


def test_sample_and_export_take_the_average_that_is_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for decay in (None, 0.999, 0.9999):
        asked = [] if decay is None else [f"--ema_decay={decay}"]
        path = tmp_path / f"{decay}.npz"
        words = [f"--workdir={run}", "--num_images=8", f"--output={path}"]
        assert main(["sample", *words, *asked]) == 0
        said = "" if decay is None else f", EMA {decay}"
        assert f"(step 8, 2 network calls{said}) to" in capsys.readouterr().out
        found[decay] = np.load(path)["arr_0"]
    np.testing.assert_array_equal(found[None], found[0.999])
    assert not np.array_equal(found[0.9999], found[0.999])
    folder = tmp_path / "exported"
    words = [f"--workdir={run}", f"--output={folder}", "--platforms=cpu"]
    assert main(["export", *words, "--ema_decay=0.9999"]) == 0
    described = json.loads((folder / "export.json").read_text())
    assert described["ema_decay"] == 0.9999
    sampler = jax.export.deserialize(
        bytearray((folder / "sampler.jaxexport").read_bytes())
    )
    labels = np.arange(8, dtype=np.int32)
    images = sampler.call(np.uint32(0), np.uint32(0), labels)
    np.testing.assert_array_equal(images, found[0.9999])
