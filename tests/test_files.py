"""Files written aside: what a killed writer leaves, the next one takes away."""

import os
import subprocess
import sys
from pathlib import Path

from multistep_cm.files import write_text


def dead_process() -> int:
    """The number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_the_next_writer_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    left = tmp_path / f".config.json.{dead_process()}.tmp"
    others = [
        tmp_path / f".config.json.{os.getppid()}.tmp",  # it may still write
        tmp_path / f".other.json.{dead_process()}.tmp",
        tmp_path / ".config.json.mine.tmp",
    ]
    for path in (left, *others):
        path.write_text("half")
    write_text(tmp_path / "config.json", "whole")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", *(path.name for path in others)}
    assert (tmp_path / "config.json").read_text() == "whole"
