"""Several real processes keep rows in one `evaluation.json`: none is lost."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from multistep_cm.errors import UserError
from multistep_cm.evaluation.results import keep_row, row_name
from multistep_cm.files import alone_with
from multistep_cm.generation import SamplingOptions
from tests.sharding.processes import outputs, several
from tests.training.tiny import tiny_config

ROOT = Path(__file__).parents[2]
PATIENCE = 300
ROWS = 40

KEEP = """
import sys
from pathlib import Path
from tests.evaluation.test_results_together import keep_some
print("ready", flush=True)
sys.stdin.readline()
keep_some(Path(sys.argv[1]), int(sys.argv[2]))
"""

HOLD = """
import sys
from pathlib import Path
from multistep_cm.files import alone_with
with alone_with(Path(sys.argv[1]) / "evaluation.json"):
    print("ready", flush=True)
    sys.stdin.readline()
"""


def keep_some(workdir: Path, first: int) -> None:
    """Rows of `first`, `first` + 1, .. steps."""
    config = tiny_config()
    for steps in range(first, first + ROWS):
        row = row_name(config, SamplingOptions("ddim", steps))
        keep_row(workdir, config, row | {"seed": 0}, {"floor": 0.5})


@contextlib.contextmanager
def process(code: str, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A process that has said that it is ready, and waits for a line."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            started.kill()


def go_on(started: subprocess.Popen[str]) -> None:
    assert started.stdin is not None
    started.stdin.write("\n")
    started.stdin.flush()


def steps_of(workdir: Path) -> list[int]:
    found = json.loads((workdir / "evaluation.json").read_text())
    return sorted(row["steps"] for row in found["rows"])


def test_two_processes_lose_no_row(tmp_path: Path) -> None:
    with process(KEEP, tmp_path, 1) as one, process(KEEP, tmp_path, 1001) as other:
        go_on(one)
        go_on(other)
        assert one.wait(PATIENCE) == other.wait(PATIENCE) == 0
    expected = [*range(1, 1 + ROWS), *range(1001, 1001 + ROWS)]
    assert steps_of(tmp_path) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]


@pytest.mark.slow
def test_two_evaluations_of_one_run_lose_no_row(
    teacher_workdir: Path, tmp_path: Path
) -> None:
    """The command itself; both train the classifier, of which there is one."""
    run = shutil.copytree(teacher_workdir, tmp_path / "teacher")
    base = [sys.executable, "-m", "multistep_cm", "evaluate", f"--workdir={run}"]
    steps = ("--num_steps=1,2,3", "--num_steps=4,5,6")
    commands = [[*base, "--num_images=72", each] for each in steps]
    with several(commands, devices=1) as processes:
        said = outputs(processes)
        assert [process.returncode for process in processes] == [0, 0], said
    assert steps_of(run) == [1, 2, 3, 4, 5, 6]
    assert not [*run.glob("*.lock"), *run.glob(".*.tmp")]


def test_threads_lose_no_row(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=keep_some, args=(tmp_path, first))
        for first in (1, 1001, 2001)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(steps_of(tmp_path)) == 3 * ROWS


def test_the_second_waits_and_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    second = threading.Thread(target=keep_some, args=(tmp_path, 1), daemon=True)
    with process(HOLD, tmp_path) as holder:
        second.start()
        second.join(0.5)
        assert second.is_alive()
        assert not (tmp_path / "evaluation.json").exists()
        holder.send_signal(signal.SIGKILL)
        assert holder.wait(PATIENCE) == -signal.SIGKILL
    second.join(PATIENCE)
    assert not second.is_alive()
    assert len(steps_of(tmp_path)) == ROWS
    # What the dead one left behind is taken away, and was no trap.
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]


def test_the_lock_is_given_back_when_something_fails(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    with pytest.raises(UserError, match="on purpose"), alone_with(path):
        raise UserError("on purpose")
    with alone_with(path):
        assert (tmp_path / "evaluation.json.lock").exists()
    assert not [*tmp_path.iterdir()]
    with (
        pytest.raises(UserError, match="cannot be written"),
        alone_with(tmp_path / "none" / "evaluation.json"),
    ):
        pass


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("multistep_cm.files.fcntl.flock", refuse)
    keep_some(tmp_path, 1)
    assert len(steps_of(tmp_path)) == ROWS
