"""SIGTERM to one of two before the first step, or in a command that takes no steps."""

import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.sharding.processes import (
    free_address,
    named,
    outputs,
    sentences,
    several,
    training,
    wait_for,
)
from tests.training.tiny import tiny_config


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_two_that_compile_end_at_once(
    digits_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    victim: int,
) -> None:
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    config = tiny_config(digits_directory, training__num_steps=10**6)
    with training(config, tmp_path) as processes:
        assert processes[0].stdout is not None
        while "compiling the train step" not in (
            line := processes[0].stdout.readline()
        ):
            assert line
        processes[victim].send_signal(signal.SIGTERM)
        said = outputs(processes)
        assert [process.returncode for process in processes] == [0, 0], said
    *_, sentence = sentences(said[0])
    assert sentence.startswith("stopped by SIGTERM before a step was made")
    assert not sentences(said[1])
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.slow
def test_two_that_sample_end_at_once(teacher_workdir: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(teacher_workdir, tmp_path / "teacher")
    output, address = tmp_path / "drawn" / "grid.png", free_address()
    command = [sys.executable, "-m", "multistep_cm", "sample", f"--workdir={workdir}"]
    words = [f"--output={output}", "--num_images=100000"]
    commands = [[*command, *words, *named(address, 2, n)] for n in range(2)]
    with several(commands) as processes:
        wait_for(processes, output.parent.is_dir)
        processes[1].send_signal(signal.SIGTERM)
        said = outputs(processes)
        assert [process.returncode for process in processes] == [143, 143], said
    assert "Traceback" not in "".join(said)
    *_, sentence = sentences(said[0])
    assert sentence.startswith("multistep-cm sample: stopped by SIGTERM")
    assert not list(output.parent.iterdir())
