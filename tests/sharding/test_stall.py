"""One of two processes stands still: the other says so and ends."""

import signal
from pathlib import Path

import pytest

from multistep_cm.training.watchdog import STALLED
from tests.sharding.processes import (
    PATIENCE,
    free_address,
    named,
    sentences,
    several,
    train_command,
    wait_for,
)
from tests.training.tiny import tiny_config

TIMEOUT = 15.0


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_ends_within_the_timeout(
    digits_directory: Path, tmp_path: Path, victim: int
) -> None:
    """SIGSTOP: it is not dead, so that its heartbeat alone would be waited for."""
    config = tiny_config(
        digits_directory,
        training__num_steps=10**6,
        training__stall_timeout=TIMEOUT,
        checkpoint__every_steps=4,
    )
    command, address = train_command(config, tmp_path), free_address()
    commands = [[*command, *named(address, 2, n, heartbeat=100)] for n in range(2)]
    with several(commands) as processes:
        wait_for(processes, (tmp_path / "checkpoints" / "4").is_dir)
        processes[victim].send_signal(signal.SIGSTOP)
        other = 1 - victim
        said, _ = processes[other].communicate(timeout=PATIENCE)
        assert processes[other].returncode == STALLED, said
        sentence = sentences(said)[-1]
        assert f"process {other} has finished nothing for {TIMEOUT:g} s" in sentence
        assert "the same command goes on from the last checkpoint" in sentence
        assert (tmp_path / f"stalled-{other}.txt").exists()
        # Once it runs again it does not wait for ever either.
        processes[victim].send_signal(signal.SIGCONT)
        said, _ = processes[victim].communicate(timeout=PATIENCE)
        assert processes[victim].returncode != 0, said
