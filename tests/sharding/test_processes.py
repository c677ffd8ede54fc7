"""Two real processes of four devices train as one process of eight does."""

import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from multistep_cm.checkpoints import Checkpoints
from multistep_cm.evaluation.results import read_results
from multistep_cm.reporting.metrics import read_jsonl
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from tests.sharding.processes import (
    HEARTBEAT,
    PATIENCE,
    free_address,
    named,
    outputs,
    sentences,
    several,
    start,
    train_command,
    training,
    wait_for,
)
from tests.training.tiny import assert_trees_equal, tiny_config

# The same program on the same eight devices: only how a sum over devices is ordered may
# differ between one process (shared memory) and two (gloo). Float32 rounds at 6e-8;
# `training.epsilon` is above the rounding of gradients that are zero in exact
# arithmetic, by which Adam would divide. Parameters move by up to 6e-2.
LOSS_TOLERANCE = 2e-5
PARAM_TOLERANCE = 2e-5


def state_of(config: ConfigDict, workdir: Path) -> tuple[int, Any, dict[str, Any]]:
    """Step, trees and data position of the newest checkpoint, read by this process."""
    with Checkpoints(workdir) as checkpoints:
        found = setup.restore_state(checkpoints, config, make_mesh(config.mesh))
    assert found is not None
    state, data_state = found
    return int(state.step), setup.split_state(state), data_state


def losses(workdir: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_jsonl(workdir / "metrics.jsonl")}


def assert_same_training(config: ConfigDict, one: Path, other: Path) -> None:
    """Position equal; losses and all trees within the tolerance above."""
    step, trees, position = state_of(config, one)
    other_step, other_trees, other_position = state_of(config, other)
    assert (step, position) == (other_step, other_position)
    a, b = losses(one), losses(other)
    assert list(a) == list(b)
    np.testing.assert_allclose([*a.values()], [*b.values()], rtol=LOSS_TOLERANCE)
    for left, right in zip(
        jax.tree.leaves(trees), jax.tree.leaves(other_trees), strict=True
    ):
        np.testing.assert_allclose(left, right, rtol=0, atol=PARAM_TOLERANCE)


def newest(workdir: Path) -> int:
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.latest_step()
    assert step is not None
    return step


def run_one(config: ConfigDict, workdir: Path) -> None:
    """To its end, by one process with eight devices."""
    process = start(train_command(config, workdir), devices=8)
    said = outputs([process])[0]
    assert process.returncode == 0, said


def run_two(config: ConfigDict, workdir: Path) -> list[str]:
    """To its end, by two processes with four each."""
    with training(config, workdir) as processes:
        said = outputs(processes)
        assert [process.returncode for process in processes] == [0, 0], said
    return said


def test_two_processes_train_as_one_and_stop_together(
    digits_directory: Path, tmp_path: Path
) -> None:
    """SIGTERM to one of two stops both at one step; one process goes on from there."""
    endless = tiny_config(
        digits_directory,
        training__num_steps=10**6,
        training__log_every=1,
        training__decay="constant",
        training__epsilon=1e-3,
        checkpoint__every_steps=4,
    )
    pieces, whole = tmp_path / "pieces", tmp_path / "whole"
    with training(endless, pieces) as processes:
        wait_for(processes, lambda: (pieces / "checkpoints" / "4").is_dir())
        processes[1].send_signal(signal.SIGTERM)
        said = outputs(processes)
        assert [process.returncode for process in processes] == [0, 0], said
    assert "Traceback" not in "".join(said)
    stopped = newest(pieces)
    assert f"stopped by SIGTERM at step {stopped}: saved" in said[0]
    # Only process 0 speaks.
    assert not sentences(said[1])
    config = endless.copy_and_resolve_references()
    config.training.num_steps = stopped
    run_one(config, whole)
    assert_same_training(endless, pieces, whole)


def interruptible(digits_directory: Path) -> ConfigDict:
    """Long enough that a signal comes before the end.

    A row for every step, because a stop writes the row that it interrupts.
    """
    return tiny_config(
        digits_directory,
        training__num_steps=60,
        training__log_every=1,
        training__epsilon=1e-3,
        checkpoint__every_steps=4,
    )


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
def test_a_checkpoint_goes_on_in_another_number_of_processes(
    digits_directory: Path, tmp_path: Path, first: int
) -> None:
    """Saved by two and finished by one, and the other way."""
    config = interruptible(digits_directory)
    pieces, whole = tmp_path / "pieces", tmp_path / "whole"
    run_one(config, whole)
    saved = pieces / "checkpoints" / "8"
    if first == 1:
        processes = [start(train_command(config, pieces), devices=8)]
        stop_and_check(processes, saved)
        said = run_two(config, pieces)[0]
    else:
        with training(config, pieces) as processes:
            stop_and_check(processes, saved)
        process = start(train_command(config, pieces), devices=8)
        said = outputs([process])[0]
        assert process.returncode == 0, said
    assert f"resumed {pieces} at step" in said
    assert_same_training(config, pieces, whole)


def stop_and_check(processes: list[Any], saved: Path) -> None:
    wait_for(processes, saved.is_dir)
    processes[0].send_signal(signal.SIGTERM)
    said = outputs(processes)
    assert {process.returncode for process in processes} == {0}, said
    assert "stopped by SIGTERM at step" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_and_little_is_lost(
    digits_directory: Path, tmp_path: Path, victim: int
) -> None:
    """Within the heartbeat, with a code that is not zero, at most one save lost."""
    config = interruptible(digits_directory)
    pieces, whole = tmp_path / "pieces", tmp_path / "whole"
    with training(config, pieces) as processes:
        wait_for(processes, (pieces / "checkpoints" / "8").is_dir)
        processes[victim].send_signal(signal.SIGKILL)
        begin = time.monotonic()
        survivor = processes[1 - victim]
        survivor.communicate(timeout=PATIENCE)
        seconds = time.monotonic() - begin
        assert survivor.returncode != 0
        # Twice: the silence must be noticed by the coordinator, then by the others.
        assert seconds < 2 * HEARTBEAT + 5, seconds
    reached = max(losses(pieces))
    said = run_two(config, pieces)[0]
    resumed = int(said.partition(f"resumed {pieces} at step ")[2].split()[0])
    assert reached - resumed <= config.checkpoint.every_steps + 2
    run_two(config, whole)
    step, trees, position = state_of(config, pieces)
    step_whole, trees_whole, position_whole = state_of(config, whole)
    assert (step, position) == (step_whole, position_whole) == (60, position)
    assert_trees_equal(trees, trees_whole)
    assert losses(pieces) == losses(whole)


@pytest.mark.slow
def test_a_step_that_is_broken_is_set_aside_by_both(
    digits_directory: Path, tmp_path: Path
) -> None:
    config = tiny_config(digits_directory)
    run_one(config, tmp_path)
    for path in (tmp_path / "checkpoints" / "8").rglob("d/*"):
        path.write_bytes(bytes(len(path.read_bytes())))
    said = run_two(config, tmp_path)
    assert "checkpoint 8 cannot be used" in said[0]
    assert f"resumed {tmp_path} at step 4" in said[0]
    assert newest(tmp_path) == 8
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["8-0"]


def command(*words: str, number: int = 1) -> list[str]:
    """What the processes of `multistep-cm WORDS` say; eight devices in all."""
    address = free_address()
    base = [sys.executable, "-m", "multistep_cm", *words]
    commands = [
        [*base, *(named(address, number, process) if number > 1 else ())]
        for process in range(number)
    ]
    with several(commands, devices=8 // number) as processes:
        said = outputs(processes)
        assert {process.returncode for process in processes} == {0}, said
    return said


@pytest.mark.slow
def test_two_processes_distil_sample_and_measure(
    digits_directory: Path, tmp_path: Path, teacher_workdir: Path
) -> None:
    """Every command in two processes; the files are those of process 0."""
    teacher = shutil.copytree(teacher_workdir, tmp_path / "teacher")
    config = tiny_config(
        digits_directory,
        method="cd",
        teacher__workdir=str(teacher),
        sampling__num_previews=8,
    )
    student = tmp_path / "student"
    run_two(config, student)
    assert (student / "samples" / "8.png").exists()
    images = {}
    for number in (1, 2):
        output = tmp_path / f"{number}.npz"
        words = [f"--workdir={student}", "--num_images=70", f"--output={output}"]
        said = command("sample", *words, number=number)
        assert said[0].endswith(f"to {output}\n")
        images[number] = np.load(output)["arr_0"].astype(int)
    assert images[1].shape == (70, 8, 8, 1)
    # Rounding to whole levels of gray may fall to either side.
    assert np.abs(images[1] - images[2]).max() <= 1
    words = [f"--workdir={teacher}", "--num_images=70", "--sampler=addim"]
    said = command("evaluate", *words, "--x_variance=measured", number=2)
    assert f"wrote {teacher / 'evaluation.json'}" in said[0]
    assert not [line for line in sentences(said[1]) if "wrote" in line]
    found = read_results(teacher)
    (row,) = found["rows"]
    assert row["frechet_distance"] > 0
    # The same features of the real images, whoever computes them.
    (teacher / "evaluation.json").unlink()
    command("evaluate", *words, "--x_variance=measured", number=1)
    assert read_results(teacher)["floor"] == found["floor"]
