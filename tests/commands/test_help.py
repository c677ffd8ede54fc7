"""Help: complete, and there at once."""

import subprocess
import sys

import pytest

import multistep_cm
from multistep_cm.commands.main import COMMANDS, main, split_overrides
from multistep_cm.errors import UserError


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_program_lists_its_commands(words: list[str]) -> None:
    done = python("-m", "multistep_cm", *words)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    for name, summary in COMMANDS.items():
        assert f"{name} " in done.stdout
        assert summary in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself_without_jax(name: str) -> None:
    code = f"""
import sys
from multistep_cm.commands.main import main
try:
    main([{name!r}, "--help"])
finally:
    heavy = {{"jax", "flax", "tensorflow_datasets", "orbax"}} & sys.modules.keys()
    print("HEAVY", sorted(heavy))
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
    assert f"usage: multistep-cm {name}" in done.stdout
    assert f"\n  multistep-cm {name} --" in done.stdout, "no example"
    assert "--workdir DIR" in done.stdout or name == "plan"


def test_the_examples_parse(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out.replace("\\\n", " ")
        begin = f"multistep-cm {name} --"
        lines = [line for line in text.splitlines() if line.strip().startswith(begin)]
        assert lines
        options = set(
            text.replace("[", " ").replace("]", " ").replace("=", " ").split()
        )
        for line in lines:
            rest, _ = split_overrides(line.split()[2:])
            assert {word.partition("=")[0] for word in rest} <= options


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == multistep_cm.__version__


def test_a_missing_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--workdir=x"]) == 2
    assert "--config is missing" in capsys.readouterr().err


def test_overrides_are_told_from_options() -> None:
    words = ["--config=c.py:a=1", "--config.x.y=1=2", "--workdir=w", "--config.z", "3"]
    rest, overrides = split_overrides(words)
    assert rest == ["--config=c.py:a=1", "--workdir=w"]
    assert overrides == {"x.y": "1=2", "z": "3"}
    with pytest.raises(UserError, match=r"--config\.z has no value"):
        split_overrides(["--config.z"])
