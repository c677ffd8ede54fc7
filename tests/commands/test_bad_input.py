"""Bad input through the command line: status 2, one sentence, nothing compiled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from multistep_cm import config as configs
from multistep_cm import factory, generation
from multistep_cm.checkpoints import Checkpoints
from multistep_cm.commands.main import COMMANDS, main
from multistep_cm.evaluation import evaluate
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import preview, setup
from tests.training.tiny import noisy_params, tiny_config

FILE = """
from multistep_cm.config import default_config, parse_arguments

def get_config(arguments=""):
    chosen = parse_arguments(arguments, method="denoising")
    config = default_config()
    config.method = chosen["method"]
    config.model.channels = (8,)
    config.model.blocks = (1,)
    config.model.attention_resolutions = ()
    config.training.batch_size = 8
    return config
"""

Complain = Callable[..., str]


@pytest.fixture(autouse=True)
def no_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bad input must never reach."""

    def compiled(*arguments: Any, **named: Any) -> None:
        pytest.fail("bad input was compiled")

    monkeypatch.setattr(setup, "build_step", compiled)
    monkeypatch.setattr(setup, "init_state", compiled)
    for module in (generation, evaluate, preview):
        monkeypatch.setattr(module, "compile_generator", compiled)


@pytest.fixture
def complain(capsys: pytest.CaptureFixture[str]) -> Complain:
    """Run a command that must fail; what it says on stderr."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        text = capsys.readouterr().err
        assert len(text.splitlines()) == 1, text
        assert "Traceback" not in text
        return text.strip()

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def train(
    complain: Complain, file: Path, tmp_path: Path, digits_directory: Path
) -> Complain:
    """A training that must fail, and leave no workdir behind."""

    def run(*words: str, arguments: str = "") -> str:
        workdir = tmp_path / "run"
        said = complain(
            "train",
            f"--config={file}:{arguments}",
            f"--workdir={workdir}",
            f"--config.data.directory={digits_directory}",
            *words,
        )
        assert not workdir.exists()
        return said

    return run


def workdir_of(config: ConfigDict, workdir: Path) -> Path:
    """A folder that holds the config of a run, and no more."""
    workdir.mkdir()
    (workdir / "config.json").write_text(configs.to_json(config))
    return workdir


def student(**values: Any) -> ConfigDict:
    return tiny_config(None, method="ct", **values)


def test_an_unknown_command_lists_those_that_exist(complain: Complain) -> None:
    said = complain("trian", "--workdir=x")
    names = ", ".join(COMMANDS)
    assert said == f"multistep-cm: no command 'trian'; there are: {names}"
    assert "train, sample, evaluate" in said


def test_a_missing_config_file(complain: Complain, tmp_path: Path) -> None:
    path = tmp_path / "none.py"
    said = complain("train", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert said == f"multistep-cm train: --config: there is no file {path}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--config.training.num_step=3"],
            ["'training.num_step' does not exist", "'training.num_steps'"],
        ),
        (["--config.training.num_steps=many"], ["'many'", "expected an integer"]),
        (["--config.training.num_steps"], ["has no value", "=VALUE"]),
        (["--config.model.dtype=half"], ["model.dtype is 'half'", "bfloat16"]),
        (
            ["--config.training.batch_size=12", "--config.mesh.data=8"],
            ["training.batch_size is 12", "8 data-parallel devices", "= 8"],
        ),
        (
            ["--config.training.accumulation=3"],
            ["training.batch_size is 8", "3 microbatches", "= 24"],
        ),
        (["--config.mesh.data=3"], ["mesh.data = 3", "8 devices"]),
        (
            ["--config.model.channels=(8,8,8,8,8)", "--config.model.blocks=1,1,1,1,1"],
            ["image size 8 is not divisible by 16"],
        ),
        (["--config.data.name=cifar11"], ["data.name is 'cifar11'", "cifar10"]),
        (["--config.data.image_key=img"], ["data.image_key", "'img'", "image"]),
        (["--config.data.label_key=class"], ["data.label_key", "'class'", "label"]),
        (["--config.data.train_split=trian"], ["'trian'", "train"]),
        (["--config.data.num_classes=7"], ["num_classes"]),
        (["--config.diffusion.logsnr_max=-20"], ["diffusion"]),
    ],
)
def test_what_no_run_can_have(
    train: Complain, words: list[str], expected: list[str]
) -> None:
    said = train(*words)
    for part in expected:
        assert part in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config.consistency.student_steps=0"], ["is 0, expected at least 1"]),
        (["--config.consistency.guidance_scale=1"], ["method ct guides no teacher"]),
        (
            ["--config.consistency.student_steps=65"],
            ["student_steps is 65", "64 steps of the teacher's grid"],
        ),
    ],
)
def test_what_no_student_can_have(
    train: Complain, words: list[str], expected: list[str]
) -> None:
    said = train(*words, arguments="method=ct")
    for part in expected:
        assert part in said


def test_a_missing_teacher(train: Complain, tmp_path: Path) -> None:
    assert "teacher.workdir is empty" in train(arguments="method=cd")
    missing = tmp_path / "none"
    said = train(f"--config.teacher.workdir={missing}", arguments="method=cd")
    assert f"teacher.workdir: workdir {missing} does not exist" in said
    missing.mkdir()
    said = train(f"--config.teacher.workdir={missing}", arguments="method=cd")
    assert f"{missing} is no workdir: it holds no config.json" in said


@pytest.mark.parametrize("with_folder", [False, True])
def test_a_teacher_without_checkpoint(
    train: Complain, file: Path, tmp_path: Path, with_folder: bool
) -> None:
    teacher = workdir_of(configs.load_config(str(file), {}), tmp_path / "teacher")
    if with_folder:
        (teacher / "checkpoints").mkdir()
    said = train(f"--config.teacher.workdir={teacher}", arguments="method=cd")
    assert f"teacher.workdir: {teacher} holds no checkpoint" in said


def test_a_guided_teacher_that_never_saw_an_image_without_its_label(
    train: Complain, file: Path, tmp_path: Path
) -> None:
    config = configs.load_config(str(file), {"training.label_dropout": "0"})
    teacher = workdir_of(config, tmp_path / "teacher")
    (teacher / "checkpoints" / "1").mkdir(parents=True)
    words = [f"--config.teacher.workdir={teacher}"]
    words += ["--config.consistency.guidance_scale=1"]
    said = train(*words, arguments="method=cd")
    assert "consistency.guidance_scale is 1.0, but the teacher in" in said
    assert "training.label_dropout = 0" in said


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.channels", "(16,)", "model.channels: (16,) -> (8,)"),
        ("model.name", "uvit", "model.name: 'uvit' -> 'unet'"),
        ("data.image_size", "16", "data.image_size: 16 -> 8"),
        ("diffusion.prediction", "x", "diffusion.prediction: 'x' -> 'v'"),
    ],
)
def test_another_teacher(
    train: Complain, file: Path, tmp_path: Path, key: str, value: str, expected: str
) -> None:
    config = configs.load_config(str(file), {key: value})
    teacher = workdir_of(config, tmp_path / "teacher")
    (teacher / "checkpoints" / "1").mkdir(parents=True)
    said = train(f"--config.teacher.workdir={teacher}", arguments="method=cd")
    assert f"(teacher -> student: {expected})" in said


@pytest.mark.parametrize(
    ("method", "keys", "expected"),
    [
        ("cd", {}, "none: CD hops on any grid"),
        ("progressive", {"student_steps": "2"}, "4, twice consistency.student_steps"),
        ("tract", {"student_steps": "2"}, "64 and 1280, of consistency.teacher_steps"),
        (
            "tract",
            {"teacher_steps_start": "16", "teacher_steps_end": "16"},
            "expected 16, of consistency.teacher_steps_start and _end",
        ),
    ],
)
def test_a_teacher_that_jumps_elsewhere(
    train: Complain,
    file: Path,
    tmp_path: Path,
    method: str,
    keys: dict[str, str],
    expected: str,
) -> None:
    """A student can teach the jumps that it has learned, and no others."""
    config = configs.load_config(str(file) + ":method=ct", {})
    config.consistency.student_steps = 8
    teacher = workdir_of(config, tmp_path / "teacher")
    (teacher / "checkpoints" / "1").mkdir(parents=True)
    words = [f"--config.consistency.{key}={value}" for key, value in keys.items()]
    said = train(
        f"--config.teacher.workdir={teacher}", *words, arguments=f"method={method}"
    )
    assert f"the teacher in {teacher} is a student of 8 steps" in said
    assert expected in said


def test_a_teacher_whose_arrays_are_of_another_network(
    complain: Complain, file: Path, tmp_path: Path, digits_directory: Path
) -> None:
    teacher = workdir_of(configs.load_config(str(file), {}), tmp_path / "teacher")
    with Checkpoints(teacher, keep=1) as checkpoints:
        tree = {"ema": {"other": jax.numpy.zeros(3)}}
        checkpoints.save(1, tree, {}, {})
    said = complain(
        "train",
        f"--config={file}:method=cd",
        f"--workdir={tmp_path / 'run'}",
        f"--config.teacher.workdir={teacher}",
        f"--config.data.directory={digits_directory}",
    )
    assert str(teacher / "checkpoints" / "1") in said
    assert "the checkpoint is of another model" in said


def test_a_workdir_of_another_run(
    complain: Complain, file: Path, tmp_path: Path, digits_directory: Path
) -> None:
    other = configs.load_config(str(file), {"training.learning_rate": "0.5"})
    workdir = workdir_of(other, tmp_path / "run")
    before = (workdir / "config.json").read_bytes()
    said = complain(
        "train",
        f"--config={file}",
        f"--workdir={workdir}",
        f"--config.data.directory={digits_directory}",
        "--config.seed=4",
    )
    assert f"workdir {workdir} holds a run with another config" in said
    # What may change, as the dataset's folder here, is not named.
    assert "(seed: 0 -> 4; training.learning_rate: 0.5 -> 0.001)" in said
    assert (workdir / "config.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sead": 1}'])
def test_a_workdir_whose_config_is_damaged(
    complain: Complain, tmp_path: Path, text: str
) -> None:
    (tmp_path / "config.json").write_text(text)
    said = complain("sample", f"--workdir={tmp_path}")
    assert str(tmp_path / "config.json") in said


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_an_unwritable_workdir(
    complain: Complain, file: Path, tmp_path: Path, digits_directory: Path, name: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    said = complain(
        "train",
        f"--config={file}",
        f"--workdir={tmp_path / name}",
        f"--config.data.directory={digits_directory}",
    )
    assert f"workdir {tmp_path / name} cannot be made" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--num_steps=4"], ["num_steps is 4", "was trained for 2", "student_steps=4"]),
        (["--num_steps=0"], ["--num_steps is 0", "from 1 to"]),
        (["--sampler=heun"], ["'heun'", "'ddim'"]),
        (["--sampler=euler"], ["'euler'", "ddim, addim, heun, ancestral"]),
        (["--labels=3,10"], ["'3,10'", "classes from 0 to 9"]),
        (["--labels=-1"], ["'-1'", "classes from 0 to 9"]),
        (["--labels=three"], ["'three'", "expected numbers"]),
        (["--num_images=0"], ["--num_images is 0"]),
        (["--guidance_scale=-1"], ["guidance_scale is -1"]),
        (["--guidance_scale=nan"], ["guidance_scale is 'nan'"]),
        (["--config.model.channels=8"], ["model.channels cannot be set here"]),
        (["--config.sampling.etta=1"], ["did you mean 'sampling.eta'?"]),
        (["--config.sampling.method=euler"], ["sampling.method is 'euler'", "heun"]),
        (["--config.evaluation.batch_size=0"], ["batch_size is 0", "above 0"]),
        (["--config.mesh.data=3"], ["mesh.data = 3", "8 devices"]),
        ([], ["holds no checkpoint", "train it first"]),
    ],
)
def test_what_cannot_be_sampled(
    complain: Complain, tmp_path: Path, words: list[str], expected: list[str]
) -> None:
    workdir = workdir_of(student(), tmp_path / "run")
    said = complain("sample", f"--workdir={workdir}", *words)
    for part in expected:
        assert part in said


def test_a_teacher_needs_at_least_one_step(complain: Complain, tmp_path: Path) -> None:
    workdir = workdir_of(tiny_config(), tmp_path / "run")
    said = complain("sample", f"--workdir={workdir}", "--num_steps=0")
    assert "--num_steps is 0, expected a whole number from 1" in said


@pytest.mark.parametrize("words", [["--labels=1"], ["--guidance_scale=0.5"]])
def test_a_model_without_classes(
    complain: Complain, tmp_path: Path, words: list[str]
) -> None:
    config = student(data__num_classes=0, data__label_key="")
    workdir = workdir_of(config, tmp_path / "run")
    assert "the model has no classes" in complain(
        "sample", f"--workdir={workdir}", *words
    )


@pytest.mark.parametrize("name", ["samples.jpg", "samples", "samples.npz.gz"])
def test_an_output_of_another_kind(
    complain: Complain, tmp_path: Path, name: str
) -> None:
    workdir = workdir_of(student(), tmp_path / "run")
    said = complain("sample", f"--workdir={workdir}", f"--output={tmp_path / name}")
    assert f"--output is {tmp_path / name}" in said
    assert ".png or .npz" in said


def test_an_output_that_cannot_be_written(complain: Complain, tmp_path: Path) -> None:
    workdir = workdir_of(student(), tmp_path / "run")
    (workdir / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "file").write_text("not a folder")
    output = tmp_path / "file" / "samples.png"
    said = complain("sample", f"--workdir={workdir}", f"--output={output}")
    assert f"--output: folder {output.parent} cannot be made" in said


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_workdir_that_holds_no_run(
    complain: Complain, tmp_path: Path, command: str
) -> None:
    missing = tmp_path / "none"
    said = complain(command, f"--workdir={missing}")
    assert f"workdir {missing} does not exist" in said
    assert not missing.exists()
    said = complain(command, f"--workdir={tmp_path}")
    assert f"{tmp_path} is no workdir: it holds no config.json" in said
    (tmp_path / "file").write_text("not a folder")
    said = complain(command, f"--workdir={tmp_path / 'file'}")
    assert str(tmp_path / "file") in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--num_images=1"], ["--num_images is 1"]),
        (["--num_steps=2,x"], ["'2,x'", "expected numbers"]),
        (["--num_steps=2,4"], ["num_steps is 4", "was trained for 2"]),
        (["--sampler=ddim,euler"], ["'euler'", "addim"]),
        (["--config.data.image_key=img"], ["cannot be set here"]),
        (["--config.mesh.data=0"], ["mesh.data = 0"]),
        (["--classifier=other.txt"], ["other.txt", ".npz"]),
        ([], ["holds no checkpoint"]),
    ],
)
def test_what_cannot_be_evaluated(
    complain: Complain,
    tmp_path: Path,
    digits_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    expected: list[str],
) -> None:
    def trained(*arguments: Any, **named: Any) -> None:
        pytest.fail("a classifier was trained for bad input")

    monkeypatch.setattr("multistep_cm.evaluation.classifier.train_classifier", trained)
    config = student()
    config.data.directory = str(digits_directory)
    workdir = workdir_of(config, tmp_path / "run")
    said = complain("evaluate", f"--workdir={workdir}", *words)
    for part in expected:
        assert part in said


def test_a_checkpoint_of_another_network(complain: Complain, tmp_path: Path) -> None:
    config = student()
    workdir = workdir_of(config, tmp_path / "run")
    wide = student(model__channels=(16,))
    params = noisy_params(wide, make_mesh(wide.mesh, jax.devices()[:1]), 0)
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(1, {"ema": params}, {}, {})
    expected = factory.abstract_params(factory.make_network(config), config)
    names = [
        [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]
        for tree in (expected, params)
    ]
    assert names[0] == names[1]  # only shapes differ
    said = complain("sample", f"--workdir={workdir}")
    assert "the checkpoint is of another model" in said
