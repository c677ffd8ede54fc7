"""`plan` through the command line: bad input, and the file that it writes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from multistep_cm.commands.main import main
from multistep_cm.planning import making
from tests.commands.test_bad_input import FILE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bad input must never reach."""

    def reached(*_: Any, **__: Any) -> None:
        pytest.fail("bad input went too far")

    monkeypatch.setattr(jax, "jit", reached)
    monkeypatch.setattr(os, "execve", reached)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--topology=v5e:8x7"], "the nearest are v5e:8x8, "),
        (["--topology=v5e"], "--topology is 'v5e', expected a TPU slice such as"),
        (["--topology=v9:8x8"], "there is no TPU 'v9'"),
        (
            ["--topology=cpu:8", "--config.mesh.data=3"],
            "multiply to 3, but there are 8",
        ),
        (["--topology=cpu:8", "--config.training.batch_size=9"], "not divisible by 8"),
        (["--topology=cpu:8", "--config.model.name=vit"], "model.name is 'vit'"),
        (["--topology=cpu:8", "--config.model.nam=vit"], "did you mean 'model.name'?"),
        (["--topology=cpu:8", "--output=nowhere/plan.json"], "no folder nowhere"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str],
    said: str,
    config_file: Path,
    no_compiler: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", f"--config={config_file}", *words]) == 2
    text = capsys.readouterr().err
    assert said in text
    assert len(text.splitlines()) == 1
    assert text.startswith("multistep-cm plan: ")


def test_without_the_extra_it_says_so(
    config_file: Path,
    no_compiler: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["plan", f"--config={config_file}", "--topology=v5e:2x2"]) == 2
    assert "pip install 'multistep_cm[tpu]'" in capsys.readouterr().err


def test_it_begins_again_with_the_compiler_s_environment(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same words, whatever stands in them."""
    began: list[tuple[str, list[str], dict[str, str]]] = []

    def execve(*arguments: Any) -> None:
        began.append(arguments)
        raise SystemExit

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(os, "execve", execve)
    words = [
        f"--config={config_file}:method=ct",
        "--topology=v5e:2x2",
        "--output=a plan.json",
        "--verdict_only",
        "--config.data.name=a b=c",
    ]
    with pytest.raises(SystemExit):
        main(["plan", *words])
    ((program, argv, variables),) = began
    assert program == sys.executable
    assert argv == [sys.executable, "-m", "multistep_cm", "plan", *words]
    assert variables["JAX_PLATFORMS"] == "cpu"


@pytest.mark.slow
def test_a_plan_from_the_command_line(tmp_path: Path, config_file: Path) -> None:
    """In a process of its own, whose number of devices nothing has set."""
    output = tmp_path / "plan.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "multistep_cm", "plan"),
            *(f"--config={config_file}:method=cd", "--topology=cpu:4"),
            f"--output={output}",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("compiling the train step of ")
    assert last == f"wrote {output}"
    content = json.loads(output.read_text())
    assert content["num_devices"] == 4
    assert content["topology"] == "cpu:4"
    assert content["fits"]
    assert making.versions().keys() == content["versions"].keys()
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []
