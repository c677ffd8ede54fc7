"""`export`: its files, in a Python that has neither this package nor Flax."""

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from multistep_cm.commands.main import main
from multistep_cm.config import to_json
from tests.training.tiny import one_device, tiny_config

DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"
FOLDERS = {"baked": "exported", "beside": "exported_beside"}
"""Where the document's examples look for what it says to export."""

SAMPLES = 100
NEEDED = [
    *["jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy"],
    *["flatbuffers", "safetensors"],
]


def example(name: str) -> str:
    """The Python below a mark of docs/export.md."""
    found = re.search(
        rf"<!-- example: {name} -->\n```python\n(.*?)```", DOCUMENT.read_text(), re.S
    )
    assert found
    return found[1]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that holds what the document names, and no more."""
    site = tmp_path_factory.mktemp("site")
    for name in NEEDED:
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or ()}
        for top in tops - {"..", "__pycache__"}:
            (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return site


def run_bare(code: str, bare: Path, folder: Path) -> str:
    """Run the code in `folder` without this environment's packages."""
    hidden = "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV"
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(bare)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def export(*words: object) -> None:
    assert main(["export", *map(str, words)]) == 0


def sampled(workdir: Path, path: Path, *words: str) -> dict[str, np.ndarray]:
    """What `sample` draws in one batch."""
    batch = f"--config.evaluation.batch_size={SAMPLES}"
    with one_device():
        words = (f"--num_images={SAMPLES}", f"--output={path}", batch, *words)
        assert main(["sample", f"--workdir={workdir}", *words]) == 0
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("name", ["flax", "multistep_cm", "ml_collections"])
def test_the_bare_python_is_bare(name: str, bare: Path, tmp_path: Path) -> None:
    code = f"import importlib.util; print(importlib.util.find_spec({name!r}))"
    assert run_bare(code, bare, tmp_path).strip() == "None"


@pytest.mark.parametrize("weights", ["baked", "beside"])
def test_the_example_draws_the_samples_of_sample(
    weights: str, teacher_workdir: Path, bare: Path, tmp_path: Path
) -> None:
    """docs/export.md as it stands; the same bits as `sample`."""
    expected = sampled(teacher_workdir, tmp_path / "expected.npz")
    where = f"--output={tmp_path / FOLDERS[weights]}"
    export(f"--workdir={teacher_workdir}", where, f"--weights={weights}")
    assert run_bare(example(weights), bare, tmp_path) == ""
    with np.load(tmp_path / "samples.npz") as found:
        for key, array in expected.items():
            np.testing.assert_array_equal(found[key], array)
    assert len(np.unique(expected["arr_0"].reshape(SAMPLES, -1), axis=0)) == SAMPLES


def test_what_is_written(
    teacher_workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "exported"
    words = ["--sampler=heun", "--num_steps=3", "--platforms=cpu,tpu,cpu"]
    export(f"--workdir={teacher_workdir}", f"--output={folder}", *words)
    said = capsys.readouterr().out
    assert "step 8, 5 network calls, for cpu, tpu" in said
    described: dict[str, Any] = json.loads((folder / "export.json").read_text())
    assert set(described["sha256"]) == {"sampler.jaxexport"}
    assert {p.name for p in folder.iterdir()} == {"sampler.jaxexport", "export.json"}
    for name, digest in described["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        assert f"{folder / name} (" in said
    assert described["platforms"] == ["cpu", "tpu"]
    assert described["call"].endswith(".call(seed, first, labels)")
    assert list(described["inputs"]) == ["seed", "first", "labels"]
    assert described["inputs"]["labels"] == "int32 [b], 0 to 9; 10 is no class"
    assert described["output"] == "uint8 [b, 8, 8, 1]"
    assert (described["method"], described["num_steps"]) == ("heun", 3)
    assert (described["train_step"], described["network_calls"]) == (8, 5)
    config = json.loads((teacher_workdir / "config.json").read_text())
    assert described["config"]["model"] == config["model"]
    assert config["data"]["directory"]
    assert described["config"]["data"]["directory"] == ""
    assert set(described["versions"]) == {"multistep_cm", "jax", "jaxlib", "numpy"}

    # A file of weights goes with the program that was written with it.
    beside = "--weights=beside"
    export(f"--workdir={teacher_workdir}", f"--output={folder}", beside)
    described = json.loads((folder / "export.json").read_text())
    assert next(iter(described["inputs"])) == "weights"
    weights = load_file(folder / "weights.safetensors")
    alone = tmp_path / "weights.safetensors"
    export(f"--workdir={teacher_workdir}", f"--output={alone}")
    assert f"wrote {len(weights)} arrays (step 8) to {alone}" in capsys.readouterr().out
    for name, array in load_file(alone).items():
        np.testing.assert_array_equal(weights[name], array)
    export(f"--workdir={teacher_workdir}", f"--output={folder}")
    assert not (folder / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "holds no checkpoint: train it first"),
        (["--platforms=cpu,gpu"], "'cpu,gpu', expected some of: cpu, cuda, rocm, tpu"),
        (["--platforms="], "expected some of"),
        (["--num_steps=0"], "--num_steps is 0, expected a whole number"),
        (["--sampler=euler"], "sampler is 'euler'"),
        (["--guidance_scale=-1"], "guidance_scale is -1"),
        (["--config.model.channels=8"], "model.channels cannot be set here"),
        (["--output=w.safetensors", "--weights=baked"], "--weights has no effect on"),
        (["--output=w.safetensors", "--num_steps=2"], "--num_steps has no effect on"),
        (["--output={}/file/new"], "/file/new cannot be made"),
    ],
)
def test_what_cannot_be_exported(
    words: list[str],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(to_json(tiny_config()))
    (tmp_path / "file").touch()
    if words and "file" in words[0]:
        (workdir / "checkpoints" / "1").mkdir(parents=True)
    words = [word.format(tmp_path) for word in words]
    assert main(["export", f"--workdir={workdir}", *words]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert expected in said
    assert not (workdir / "export").exists()


def test_a_workdir_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", f"--workdir={tmp_path / 'none'}"]) == 2
    assert "none does not exist" in capsys.readouterr().err
