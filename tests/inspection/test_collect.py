"""Reports of real, tiny runs: what is drawn is what `sample` draws."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.commands.main import main
from multistep_cm.generation import balanced_labels, compile_generator, sampling_options
from multistep_cm.inspection import collect
from multistep_cm.inspection.trajectories import record, trajectory_pictures
from multistep_cm.losses.signature import Params
from multistep_cm.reporting.content import Pictures
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training.loop import train
from multistep_cm.training.step import unscale_images
from tests.reporting.pages import PageReader, strip
from tests.training.tiny import noisy_params, one_device, tiny_config


@pytest.fixture(scope="module", autouse=True)
def one() -> Iterator[None]:
    with one_device():
        yield


@pytest.fixture(scope="module")
def params() -> Params:
    config = tiny_config()
    return noisy_params(config, make_mesh(config.mesh), seed=0)


@pytest.mark.parametrize("method", ["ddim", "addim", "heun", "ancestral"])
def test_a_trajectory_ends_in_the_sample(method: str, params: Params) -> None:
    config = tiny_config()
    mesh, labels = make_mesh(config.mesh), balanced_labels(3, 10)
    options = sampling_options(config, method, 4)
    calls, z_0 = record(config, options, params, labels, 5, mesh)
    assert len(calls) == options.network_calls
    assert [call.t for call in calls][:2] == [1.0, 0.75]
    assert calls[0].z_t.shape == calls[0].x_hat.shape == (3, 8, 8, 1)
    expected = compile_generator(config, options, mesh, 3)(params, labels, 5)
    images = unscale_images(jnp.asarray(z_0), config.data.range)
    found = np.asarray(images).astype(int)
    # Another program rounds otherwise, by at most one step of uint8.
    assert np.abs(found - expected).max() <= 1
    assert np.ptp(found) > 50


def test_guidance_is_followed(params: Params) -> None:
    config = tiny_config()
    mesh, labels = make_mesh(config.mesh), balanced_labels(2, 10)
    plain, guided = (
        record(config, sampling_options(config, "ddim", 2, w), params, labels, 0, mesh)
        for w in (0.0, 2.0)
    )
    np.testing.assert_allclose(plain[0][0].z_t, guided[0][0].z_t)
    assert np.abs(plain[0][0].x_hat - guided[0][0].x_hat).max() > 1e-3

    # At t = 1 this interval does not guide.
    config.sampling.guidance_interval = (0.0, 0.6)
    options = sampling_options(config, "ddim", 2, 2.0)
    within, z_0 = record(config, options, params, labels, 0, mesh)
    np.testing.assert_allclose(within[0].x_hat, plain[0][0].x_hat, atol=1e-5)
    expected = compile_generator(config, options, mesh, 2)(params, labels, 0)
    found = np.asarray(unscale_images(jnp.asarray(z_0), config.data.range))
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_long_trajectory_is_thinned(params: Params) -> None:
    config = tiny_config()
    options = sampling_options(config, "ddim", 20)
    mesh = make_mesh(config.mesh)
    calls, z_0 = record(config, options, params, balanced_labels(2, 10), 0, mesh)
    shown = trajectory_pictures(calls, z_0, ["one", "two"], config)
    assert shown.heads[0] == "t=1.00"
    assert shown.heads[-2:] == ["t=0.05", "t=0"]
    assert [len(s.images) for s in shown.strips] == [9, 8, 9, 8]
    assert "20 network calls, 8 of them shown" in shown.caption
    images = unscale_images(jnp.asarray(z_0), config.data.range)
    np.testing.assert_array_equal(shown.strips[2].images[-1], images[1])


@pytest.fixture(scope="module")
def runs(
    one: None,
    tmp_path_factory: pytest.TempPathFactory,
    teacher_workdir: Path,
    digits_directory: Path,
) -> Path:
    """A folder with a teacher that was measured and a student that was not."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(teacher_workdir, folder / "teacher")
    rows = [
        {
            "method": "teacher_addim",
            "steps": steps,
            "network_calls": steps,
            "num_images": 70,
            "frechet_distance": 0.1 / steps,
            "seed": 1,
            "guidance_scale": 0.0,
            "x_variance": "analytic",
        }
        for steps in (1, 3)
    ]
    results = json.dumps({"floor": 0.01, "rows": rows})
    (folder / "teacher" / "evaluation.json").write_text(results)
    keys = {"method": "cd", "teacher__workdir": str(folder / "teacher")}
    assert train(tiny_config(digits_directory, **keys), folder / "cd2")
    return folder


def report(*words: str) -> int:
    return main(["report", *words])


def test_a_page_of_a_teacher_and_a_student(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = runs / "new" / "both.html"
    words = [str(runs / "teacher"), str(runs / "cd2"), f"--output={output}"]
    assert report("--workdir", *words, "--num_images=20") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"wrote {output}"
    assert said[0].startswith("missing: ")
    assert said[1] == f"  multistep-cm evaluate --workdir={runs / 'cd2'}"
    assert not [*output.parent.glob("*.tmp")]

    page = PageReader(output.read_text())
    assert not page.open
    labels = [v["alt"] for tag, v in page.elements if tag == "img"]
    assert labels[:4] == [
        "real images: 20 images",
        "teacher: addim, 3 steps: 20 images",
        "teacher: addim, 1 step: 20 images",
        "cd2: cd, 2 steps: 20 images",
    ]
    assert len(labels) == 4 + 2 * 3 * 2
    images = page.images()
    for image in images:
        assert np.ptp(image[..., 0]) > 0
    # The teacher's one step starts from the noise of its three.
    assert ("0.1", "0.1000") in page.data
    assert "teacher at its best (addim, 3 calls)" in page.text
    assert "floor: real against real images: 0.01" in page.text
    folder, options = runs / "teacher", "--sampler=addim --num_images=70 --seed=1"
    for line in (
        f"multistep-cm train --config={folder}/config.json --workdir={folder}",
        f"multistep-cm evaluate --workdir={folder} --num_steps=1,3 {options}",
    ):
        assert line in page.text
    assert "teacher.workdir" in page.text


def test_each_way_of_measuring_has_its_command(runs: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copy(runs / "teacher" / "config.json", workdir)
    rows = [
        {"method": "teacher_ddim", "steps": 8, "fid": 2.5, "num_images": 50_000},
        {"method": "teacher_ddim", "steps": 4, "fid": 3.5, "num_images": 50_000},
        {"method": "teacher_addim", "steps": 4, "x_variance": "measured", "seed": 2},
        {
            "method": "teacher_ddim",
            "steps": 8,
            "guidance_scale": 0.5,
            "guidance_interval": [0.25, 1.0],
        },
    ]
    (workdir / "evaluation.json").write_text(json.dumps({"rows": rows}))
    made = collect.make_report([workdir], num_images=0)
    begin = f"multistep-cm evaluate --workdir={workdir} --num_steps="
    found = [c.removeprefix(begin) for c in made.commands if c.startswith(begin)]
    fid = "--features=inception --inception_weights=FILE --num_images=50000"
    assert found == [
        f"8,4 --sampler=ddim {fid}",
        "4 --sampler=addim --x_variance=measured --seed=2",
        "8 --sampler=ddim --guidance_scale=0.5 "
        "'--config.sampling.guidance_interval=(0.25,1.0)'",
    ]


def test_the_strips_are_what_sample_draws(runs: Path, tmp_path: Path) -> None:
    made = collect.make_report([runs / "cd2"], num_images=4, seed=3)
    assert made.samples
    _, drawn = made.samples.strips
    output = tmp_path / "samples.npz"
    words = [f"--workdir={runs / 'cd2'}", "--num_images=4", "--seed=3"]
    assert main(["sample", *words, f"--output={output}"]) == 0
    with np.load(output) as file:
        expected = file["arr_0"].astype(int)
    assert np.abs(drawn.images.astype(int) - expected).max() <= 1
    # A student alone is still held against its teacher.
    assert [run.run for run in made.measured] == ["cd2", "teacher (teacher)"]


def test_the_page_goes_into_the_workdir(runs: Path) -> None:
    assert report(f"--workdir={runs / 'teacher'}", "--num_images=0") == 0
    page = PageReader((runs / "teacher" / "report.html").read_text())
    assert not page.images()
    assert "0.0333" in page.text


def test_pictures_that_are_there_are_not_drawn_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "multistep_cm.inspection.pictures.compile_generator",
        lambda *_: pytest.fail("compiled"),
    )
    given = Pictures("given", (), [strip("x", 2)])
    made = collect.make_report([runs / "cd2"], samples=given)
    assert made.samples is given
    assert made.runs[0].trajectories


def test_a_run_without_checkpoints_is_shown_without_pictures(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "light"
    without = shutil.ignore_patterns("checkpoints")
    shutil.copytree(runs / "teacher", workdir, ignore=without)
    assert report(f"--workdir={workdir}") == 0
    said = capsys.readouterr().out
    assert f"missing: {workdir} holds no checkpoint, so no images" in said
    assert f"  multistep-cm train --config={workdir}/config.json" in said
    page = (workdir / "report.html").read_text()
    assert "holds no checkpoint" in page
    assert "0.0333" in page


def test_a_checkpoint_that_cannot_be_read_is_said(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "broken"
    shutil.copytree(runs / "cd2", workdir)
    for path in (workdir / "checkpoints").iterdir():
        shutil.rmtree(path / "ema")
    assert report(f"--workdir={workdir}") == 0
    assert f"missing: {workdir} was not drawn: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workdir=nowhere"], "workdir nowhere does not exist"),
        (["--workdir={empty}"], "holds no config.json"),
        (["--workdir={run}", "--output=a.pdf"], "expected a name ending in .html"),
        (["--workdir={run}", "--num_images=-1"], "--num_images is -1, expected a"),
        (["--workdir={run}", "--output={file}/a.html"], "cannot be made"),
        (["--workdir={run}", "--config.seed=1"], "config key seed cannot be set here"),
    ],
)
def test_bad_input_is_one_sentence(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    names = {
        "run": runs / "cd2",
        "empty": tmp_path / "empty",
        "file": tmp_path / "file",
    }
    assert report(*(word.format(**names) for word in words)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_devices_that_are_not_here_are_said(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--workdir={runs / 'cd2'}", "--config.mesh.fsdp=2"]
    assert report(*words) == 0
    assert "was not drawn: " in capsys.readouterr().out
    assert len(jax.devices()) == 1
