"""What stands still ends by itself, and says where: real processes that hang."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multistep_cm.training.watchdog import STALLED, Watchdog
from tests.training.test_resume import PATIENCE, ROOT
from tests.training.tiny import flags, tiny_config

HANG = """
import ctypes, sys, threading, time
from pathlib import Path
from multistep_cm.training.watchdog import Watchdog

def stand_still():
    {action}

with Watchdog(0.5, Path(sys.argv[1])) as watchdog:
    watchdog.beat("at step 7")
    stand_still()
"""


def hang(action: str, workdir: Path) -> subprocess.CompletedProcess[str]:
    """What becomes of a process whose main thread does this."""
    return subprocess.run(
        [sys.executable, "-c", HANG.format(action=action), str(workdir)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize(
    "action",
    ["threading.Event().wait()", "ctypes.CDLL(None).sleep(1000)"],
    ids=["python", "c"],
)
def test_a_thread_that_waits_for_ever_is_named(action: str, tmp_path: Path) -> None:
    ended = hang(action, tmp_path)
    assert ended.returncode == STALLED
    *stacks, sentence = ended.stderr.splitlines()
    file = tmp_path / "stalled-0.txt"
    assert "process 0 has finished nothing for 0.5 s at step 7" in sentence
    assert "training.stall_timeout" in sentence
    assert str(file) in sentence
    for text in ("\n".join(stacks), file.read_text()):
        assert "in stand_still" in text
    assert not ended.stdout


def test_what_holds_the_interpreter_ends_too(tmp_path: Path) -> None:
    """Code in C that lets no other thread run: the clock in C prints and ends."""
    ended = hang("ctypes.PyDLL(None).sleep(1000)", tmp_path)
    assert ended.returncode == 1
    assert "Timeout (0:00:01)!" in ended.stderr
    assert "in stand_still" in ended.stderr


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    ended = hang("threading.Event().wait()", tmp_path / "absent")
    assert ended.returncode == STALLED
    assert "in stand_still" in ended.stderr
    assert "No such file or directory" in ended.stderr.splitlines()[-1]


def test_what_goes_on_or_is_paused_or_off_is_left_alone(tmp_path: Path) -> None:
    script = HANG.format(
        action="""
    for _ in range(10):
        time.sleep(0.2)
        watchdog.beat("at step 8")
    with watchdog.paused():
        time.sleep(2)
    with Watchdog(0, Path("absent")):
        pass
    print("done")"""
    )
    ended = subprocess.run(
        [sys.executable, "-c", script.replace("0.5", "1.5"), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
    assert not list(tmp_path.iterdir())


def test_a_process_that_stood_still_itself_is_no_stall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long tick, as after SIGCONT, is not taken for a long silence."""
    watchdog, clock, ended = Watchdog(100.0, tmp_path), [0.0], []
    times = iter([5.0, 10.0, 900.0, 905.0, 910.0])

    def wait(tick: float) -> bool:
        clock[0] = next(times, -1.0)
        return clock[0] < 0

    monkeypatch.setattr(watchdog, "_wait", wait)
    monkeypatch.setattr(watchdog, "_end", lambda: ended.append(clock[0]))
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    watchdog._watch()
    assert not ended
    times = iter(np.arange(5.0, 150.0, 5.0).tolist())
    clock[0] = 0.0
    watchdog._watch()
    assert ended[0] == 100.0


HANGING = """
import sys, threading
from pathlib import Path

from multistep_cm.commands.main import main
from multistep_cm.data import folder_source

read = folder_source.read_bytes


def read_or_hang(path, most_bytes):
    if Path(sys.argv[1]).exists():
        threading.Event().wait()
    return read(path, most_bytes)


folder_source.read_bytes = read_or_hang
sys.exit(main(sys.argv[2:]))
"""
"""A run on a disk that answers no more as soon as a file is there."""


def test_a_source_that_hangs_ends_the_run(tmp_path: Path) -> None:
    """A disk answers no more while the step compiles."""
    folder, workdir, switch = (tmp_path / name for name in ("images", "run", "hangs"))
    folder.mkdir()
    for index in range(40):
        image = np.full((8, 8), index, np.uint8)
        Image.fromarray(image).save(folder / f"{index:02}.png")
    config = tiny_config(
        folder,
        data__name="folder",
        data__cache=False,
        data__num_classes=0,
        data__evaluation_split="train",
        training__num_steps=1000,
        training__stall_timeout=8.0,
    )
    words = ["train", "--config=configs/digits.py", f"--workdir={workdir}"]
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, str(switch), *words, *flags(config)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        while "compiling the train step" not in line:
            assert line
            line = process.stdout.readline()
        switch.touch()
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == STALLED, said
    sentence = said.splitlines()[-1]
    assert "has finished nothing for 8 s at step" in sentence
    # The thread that reads is among those shown.
    for text in (said, (workdir / "stalled-0.txt").read_text()):
        assert "data/folder_source.py" in text, said
