"""Processes that are killed: a real SIGKILL and a real SIGTERM from outside."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from multistep_cm.checkpoints import Checkpoints
from multistep_cm.reporting.metrics import read_jsonl
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from multistep_cm.training.loop import train
from tests.training.tiny import assert_trees_equal, flags, one_device, tiny_config

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0


@pytest.fixture(autouse=True, scope="module")
def single() -> Iterator[None]:
    """Of the devices, one: what several compute is tests/sharding's matter."""
    with one_device():
        yield


@contextlib.contextmanager
def training_process(
    config: ConfigDict, workdir: Path, **variables: str
) -> Iterator[subprocess.Popen]:
    """`multistep-cm train` in a process of its own, which has one device."""
    arguments = ["--config=configs/digits.py", f"--workdir={workdir}", *flags(config)]
    process = subprocess.Popen(
        [sys.executable, "-m", "multistep_cm", "train", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)


def state_of(config: ConfigDict, workdir: Path) -> tuple[int, Any, dict[str, Any]]:
    with Checkpoints(workdir) as checkpoints:
        found = setup.restore_state(checkpoints, config, make_mesh(config.mesh))
    assert found is not None
    state, data_state = found
    return int(state.step), setup.split_state(state), data_state


def finish(process: subprocess.Popen) -> None:
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said


def test_killed_and_continued_is_bit_for_bit_the_whole_run(
    digits_directory: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        digits_directory, training__num_steps=60, checkpoint__every_steps=4
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    # Programs as optimised as a user's.
    optimised = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    with training_process(config, killed, **optimised) as process:
        wait_for(process, lambda: (killed / "checkpoints" / "8").is_dir())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    # Only now: the first process has compiled the step for all three.
    with training_process(config, whole, **optimised) as uninterrupted:
        with Checkpoints(killed) as checkpoints:
            reached = checkpoints.latest_step()
        assert reached is not None
        assert 8 <= reached < 60
        with training_process(config, killed, **optimised) as process:
            finish(process)
        finish(uninterrupted)
    step, trees, position = state_of(config, killed)
    step_whole, trees_whole, position_whole = state_of(config, whole)
    assert step == step_whole == 60
    assert position == position_whole
    assert_trees_equal(trees, trees_whole)
    pieces, at_once = (
        [
            {key: value for key, value in row.items() if key != "images_per_second"}
            for row in read_jsonl(folder / "metrics.jsonl")
        ]
        for folder in (killed, whole)
    )
    assert [row["step"] for row in pieces] == list(range(2, 61, 2))
    assert pieces == at_once


def test_sigterm_from_outside_ends_in_order(
    digits_directory: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        digits_directory, training__num_steps=10**6, checkpoint__every_steps=10**6
    )
    with training_process(config, tmp_path) as process:
        # Saved before the first step: from here on there is something to lose.
        wait_for(process, (tmp_path / "checkpoints" / "0").is_dir)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 0, said
    assert "Traceback" not in said
    (sentence,) = [line for line in said.splitlines() if "stopped by SIGTERM" in line]
    assert sentence.endswith("saved; the same command continues")
    step = int(sentence.partition("at step ")[2].partition(":")[0])
    assert (tmp_path / "checkpoints" / str(step)).is_dir()
    assert json.loads((tmp_path / "config.json").read_text())["method"] == "denoising"


def test_sigterm_while_compiling_ends_at_once(
    digits_directory: Path, tmp_path: Path
) -> None:
    config = tiny_config(digits_directory, training__num_steps=10**6)
    with training_process(
        config, tmp_path, JAX_ENABLE_COMPILATION_CACHE="false"
    ) as process:
        assert process.stdout is not None
        said = ""
        while "compiling the train step" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        process.send_signal(signal.SIGTERM)
        said += process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 0, said
    *_, sentence = said.splitlines()
    assert sentence.startswith("stopped by SIGTERM before a step was made")
    assert "Traceback" not in said
    # Nothing was saved, and nothing is half saved.
    assert not list((tmp_path / "checkpoints").iterdir())


def test_rows_of_a_run_that_ended_before_its_first_save_are_written_anew(
    digits_directory: Path, tmp_path: Path
) -> None:
    lost = ('{"step": 2, "loss": 7.0}', '{"step": 4, "loss": 7.0}')
    (tmp_path / "metrics.jsonl").write_text("\n".join(lost) + "\n")
    assert train(tiny_config(digits_directory), tmp_path)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert all(row["loss"] < 7 for row in rows)
