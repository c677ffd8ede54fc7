"""Files written aside: what a killed writer leaves, the next one takes away."""

import os
import subprocess
import sys
from pathlib import Path

from multistep_cm import files
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


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    assert files.path_problem("") == "it is empty"
    assert files.path_problem("a\0b") == "it holds a NUL"
    for name in ("a" * 256, "ä" * 128, "/".join(["a" * 255] * 17)):
        assert "longer than" in files.path_problem(name)
        assert not files.is_folder(tmp_path / name)
    for name in ("a" * 255, "\udc80", "/".join(["a" * 255] * 15), "a\nb"):
        assert not files.path_problem(name)
    assert files.is_folder(tmp_path)
    assert not files.is_folder(tmp_path / "a\0b")


def test_the_home_of_somebody_unknown() -> None:
    assert files.with_home("~no-such-user/x") == Path("~no-such-user/x")
    assert files.with_home("~/x") == Path.home() / "x"
