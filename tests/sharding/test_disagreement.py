"""Processes that differ, or fail alone: one sentence in each, and nobody waits."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.sharding.processes import (
    ROOT,
    free_address,
    named,
    outputs,
    sentences,
    several,
    train_command,
)
from tests.training.tiny import tiny_config


def refused(
    words: Sequence[Sequence[str]], folders: Sequence[Path] = (ROOT, ROOT)
) -> list[str]:
    """What each of two processes says, which must be one sentence and the exit 2.

    The last word of an option that stands twice counts.
    """
    address = free_address()
    commands = [[*w, *named(address, 2, i)] for i, w in enumerate(words)]
    with several(commands, folders, devices=1) as processes:
        begin = time.monotonic()
        said = [sentences(text) for text in outputs(processes)]
        assert time.monotonic() - begin < 300
        assert [process.returncode for process in processes] == [2, 2], said
    assert all("Traceback" not in line for lines in said for line in lines)
    last = [lines[-1].removeprefix("multistep-cm train: ") for lines in said]
    assert all(lines[-1].startswith("multistep-cm train: ") for lines in said), said
    return last


def test_two_command_lines(tmp_path: Path) -> None:
    command = train_command(tiny_config(), tmp_path / "run")
    said = refused([command, [*command, "--config.training.batch_size=16"]])
    assert said[0] == said[1]
    assert said[0].startswith(
        "--config.training.batch_size is '8' in process 0 and '16' in process 1: "
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_config_files(digits_directory: Path, tmp_path: Path) -> None:
    """The same command in two folders, as on two hosts."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, rate in zip(folders, ("1e-3", "1e-4"), strict=True):
        folder.mkdir()
        (folder / "c.py").write_text(
            "from multistep_cm.config import default_config\n"
            "def get_config(arguments):\n"
            "    config = default_config()\n"
            f"    config.training.learning_rate = {rate}\n"
            f"    config.data.directory = '{digits_directory}'\n"
            "    return config\n"
        )
    command = [*train_command(tiny_config(), tmp_path / "run")[:4], "--config=c.py"]
    command += [f"--workdir={tmp_path / 'run'}"]
    said = refused([command] * 2, folders)
    assert said[0] == said[1]
    assert "config key training.learning_rate is 0.001 in process 0" in said[0]
    assert "0.0001 in process 1" in said[0]


@pytest.mark.slow
def test_a_file_that_one_host_lacks(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    shutil.copy(ROOT / "configs" / "digits.py", folders[0] / "c.py")
    command = [*train_command(tiny_config(), tmp_path / "run")[:4], "--config=c.py"]
    command += [f"--workdir={tmp_path / 'run'}"]
    said = refused([command] * 2, folders)
    assert said[1] == "--config: there is no file c.py"
    assert said[0] == f"process 1: {said[1]}"


@pytest.mark.slow
def test_a_workdir_that_is_not_shared(digits_directory: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    config = tiny_config(digits_directory)
    said = refused([train_command(config, Path("run"))] * 2, folders)
    assert said[1].startswith("run/config.json is not what process 0 has written")
    assert said[0] == f"process 1: {said[1]}"


@pytest.mark.slow
def test_two_lists_of_steps(
    digits_directory: Path, teacher_workdir: Path, tmp_path: Path
) -> None:
    """One process finds a step that the other does not."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        shutil.copytree(teacher_workdir, folder / "run")
    shutil.rmtree(folders[1] / "run" / "checkpoints" / "8")
    config = tiny_config(digits_directory)
    said = refused([train_command(config, Path("run"))] * 2, folders)
    assert said[0] == said[1]
    assert "the list of steps in checkpoints/ is [8, 4] in process 0" in said[0]
    assert "and [4] in process 1" in said[0]
