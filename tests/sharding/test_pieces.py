"""Two processes save, verify and restore, each what its own devices hold."""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.sharding import checkpointer
from tests.sharding.processes import free_address, outputs, several
from tests.test_checkpoints import flip_bit, truncate

# TensorStore leaves a coroutine behind when it meets damage.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collected"),
]

Said = list[list[str]]


def run(actions: Sequence[str], number: int = 2, **variables: str) -> Said:
    """What each process says of each action, and other lines after all of those."""
    address, module = free_address(), [sys.executable, "-m", checkpointer.__name__]
    commands = [
        [*module, address, str(number), str(process), *actions]
        for process in range(number)
    ]
    own = [variables] * number
    with several(commands, devices=8 // number, variables=own) as processes:
        said = outputs(processes)
        assert {process.returncode for process in processes} == {0}, said
    lines = [text.splitlines() for text in said]
    return [
        [line[2:] for line in own if line.startswith("> ")]
        + [line for line in own if line.startswith("checkpoint ")]
        for own in lines
    ]


def steps(said: Said) -> list[list[str]]:
    """The part of each line that names the step."""
    return [[line.partition(" with")[0] for line in own] for own in said]


def of_process(workdir: Path, process: int) -> Path:
    """The file of arrays that this process wrote into step 4."""
    folder = workdir / "checkpoints" / "4" / "ema" / f"ocdbt.process_{process}" / "d"
    return max(folder.iterdir(), key=lambda path: path.stat().st_size)


def test_pieces_on_every_cut_and_in_any_number_of_processes(tmp_path: Path) -> None:
    """Columns lie across the processes that saved rows, and so do whole leaves."""
    cuts = ("rows", "columns", "whole")
    actions = [f"save:{cut}:{tmp_path / cut}" for cut in cuts]
    actions += [f"restore:{to}:{tmp_path / cut}" for cut in cuts for to in cuts]
    assert steps(run(actions)) == [["saved"] * 3 + ["restored 4"] * 9] * 2
    for cut in cuts:
        for to in cuts:
            said = checkpointer.restore(to, tmp_path / cut, keep=None)
            assert said.startswith("restored 4")
        assert checkpointer.save(cut, tmp_path / f"one_{cut}") == "saved"
    actions = [f"restore:{to}:{tmp_path / f'one_{cut}'}" for cut in cuts for to in cuts]
    assert steps(run(actions)) == [["restored 4"] * 9] * 2


@pytest.mark.parametrize("process", [0, 1])
def test_what_one_process_finds_both_act_upon(tmp_path: Path, process: int) -> None:
    """Only one process reads the file that is damaged; nobody waits for it."""
    sound = tmp_path / "sound"
    assert steps(run([f"save:rows:{sound}"])) == [["saved"]] * 2
    damages: dict[str, Callable[[Path], object]] = {
        "flipped": flip_bit,
        "truncated": truncate,
        "missing": Path.unlink,
    }
    actions = []
    for name, damage in damages.items():
        shutil.copytree(sound, tmp_path / name)
        damage(of_process(tmp_path / name, process))
        cuts = ("rows", "columns", "whole")
        actions += [f"restore:{cut}:{tmp_path / name}" for cut in cuts]
        actions += [f"resume:rows:{tmp_path / name}"] * 2
    said = run(actions)
    for own in steps(said):
        assert own[: len(actions)] == ["restored 2"] * len(actions)
    # Three skip the step and one sets it aside; then it is gone. Process 0 speaks.
    assert len(said[0]) == len(actions) + 4 * len(damages)
    assert len(said[1]) == len(actions)
    assert "has another sha256 than when it was saved" in said[0][len(actions)]
    for name in damages:
        assert [path.name for path in (tmp_path / name / "broken").iterdir()] == ["4-0"]


def test_a_nan_in_one_process_stops_both(tmp_path: Path) -> None:
    actions = [f"save:rows:{tmp_path}", f"spoil:rows:{tmp_path}"]
    actions += [f"resume:rows:{tmp_path}"]
    expected = ["saved", "ema/layer1 holds values that are not finite", "restored 4"]
    assert steps(run(actions)) == [expected] * 2


@pytest.mark.skipif(not checkpointer.peak_megabytes(), reason="no /proc")
def test_no_process_holds_all(tmp_path: Path) -> None:
    """A quarter of 256 MB, and as much again in the files that are being read."""
    size = {"ROWS": "1024", "LEAVES": "16"}
    run([f"save:rows:{tmp_path}"], 4, **size)
    for own in run([f"restore:rows:{tmp_path}"], 4, **size):
        megabytes = float(own[0].partition("with ")[2].removesuffix(" MB"))
        assert 64 <= megabytes < 0.7 * 256
