"""A save that fails in the background ends the run at the next step, in a sentence."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from multistep_cm import digests
from multistep_cm.checkpoints import Checkpoints, SaveError
from multistep_cm.errors import UserError
from multistep_cm.training import setup
from multistep_cm.training.loop import train
from tests.training.test_resume import training_process, wait_for
from tests.training.tiny import MLP, one_device, tiny_config

LESS_THAN_ORBAX = 200.0
"""Seconds; its threads wait for 300."""


@pytest.fixture(autouse=True, scope="module")
def single() -> Iterator[None]:
    with one_device():
        yield


def await_saves() -> None:
    """Until no thread of Orbax that saves is left."""
    while any("save_finalize" in thread.name for thread in threading.enumerate()):
        time.sleep(0.01)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The calls of the compiled step, each made when the last save has ended."""
    build, made = setup.build_step, list[int]()

    def build_step(*arguments: Any) -> Callable[..., Any]:
        compiled = build(*arguments)

        def call(*arguments: Any) -> Any:
            made.append(len(made) + 1)
            result = compiled(*arguments)
            await_saves()
            return result

        return call

    monkeypatch.setattr(setup, "build_step", build_step)
    return made


def test_a_full_disk_is_noticed_at_the_next_step(
    digits_directory: Path,
    tmp_path: Path,
    steps: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = digests._sha256

    def full(data: Any) -> str:
        # In Orbax's thread, while the steps go on.
        if len(steps) >= 4:
            while len(steps) < 5:
                time.sleep(0.01)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(data)

    monkeypatch.setattr(digests, "_sha256", full)
    config = tiny_config(digits_directory, **MLP, training__num_steps=100)
    with pytest.raises(SaveError) as caught:
        train(config, tmp_path)
    message = str(caught.value)
    assert "checkpoint 4 cannot be written" in message
    assert "No space left on device" in message
    assert "last complete one there is of step 0" in message
    assert len(message.splitlines()) == 1
    # The fourth was saved behind; the fifth ran, and no other.
    assert steps == [1, 2, 3, 4, 5]
    # Orbax's own lines are there, without the stacks that would bury the sentence.
    logged = [record for record in caplog.records if "orbax" in record.pathname]
    assert any("save" in record.getMessage() for record in logged)
    assert not any(record.exc_info or record.exc_text for record in logged)


def test_a_folder_that_is_gone_ends_the_program(
    digits_directory: Path, tmp_path: Path
) -> None:
    """A real process: the threads that Orbax leaves would hold it for five minutes."""
    folder, file = tmp_path / "run" / "checkpoints", tmp_path / "file"
    file.write_text("a file in its place")
    config = tiny_config(digits_directory, **MLP, training__num_steps=10**6)
    with training_process(config, tmp_path / "run") as process:
        wait_for(process, (folder / "4").is_dir)
        folder.rename(tmp_path / "gone")
        file.rename(folder)
        said, _ = process.communicate(timeout=LESS_THAN_ORBAX)
    assert process.returncode == 2, said
    (sentence,) = [line for line in said.splitlines() if "multistep-cm train" in line]
    assert sentence.startswith("multistep-cm train: checkpoint ")
    assert "last complete one there is none" in sentence


@pytest.mark.parametrize("trouble", [None, UserError("smaller"), ValueError("a bug")])
def test_a_save_that_fails_at_the_end_is_a_sentence(
    trouble: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(data: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(digests, "_sha256", full)
    told = ValueError if isinstance(trouble, ValueError) else SaveError
    with (
        pytest.raises(told, match=r"a bug|checkpoint 1 .*No space left .* is none"),
        Checkpoints(tmp_path, keep=1) as checkpoints,
    ):
        checkpoints.save(1, {"params": {"a": jnp.ones(4)}}, {}, {})
        if trouble is not None:
            raise trouble
