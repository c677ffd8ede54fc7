"""Errors of the command line itself: one sentence, no usage, status 2."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multistep_cm.commands.arguments import as_number, as_path, as_seed, whole
from multistep_cm.commands.main import main


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sample", "--workdir is missing"),
        ("sample --workdir", "--workdir has no value"),
        ("sample --workdir=", "--workdir is '', expected the name of a file or folder"),
        ("evaluate --workdir", "--workdir has no value"),
        ("evaluate --workdir=x --again=3", "--again takes no value, but has '3'"),
        (
            "evaluate --workdir=x --x_variance=some",
            "--x_variance is 'some', expected one of: 'analytic', 'measured'",
        ),
        (
            "sample --workdir=x --num_imags=3",
            "there is no option --num_imags=3 (did you mean --num_images?)",
        ),
        ("sample --workdir=x more", "there is no option more"),
        ("sample --workdir=x --num=3", "--num=3 could match --num_images, --num_steps"),
        (
            "sample --workdir=x --num_images=3.5",
            "--num_images is '3.5', expected a whole number from 1 to 100000000",
        ),
        ("sample --workdir=x --num_images=0", "--num_images is 0, expected a whole"),
        ("evaluate --workdir=x --num_images=1", "whole number from 2 to"),
        ("report --workdir=x --num_images=-1", "whole number from 0 to"),
        (
            "sample --workdir=x --seed=-1",
            "--seed is -1, expected a whole number from 0",
        ),
        ("sample --workdir=x --guidance_scale=inf", "expected a finite number"),
        ("sample --workdir=x --num_processes=0", "--num_processes is 0, expected"),
        ("train --workdir=x", "--config is missing"),
    ],
)
def test_one_sentence(
    line: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = line.split()
    assert main(words) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith(f"multistep-cm {words[0]}: ")
    assert expected in said.err
    assert said.err.endswith(f"; `multistep-cm {words[0]} --help` says what there is\n")
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (whole(1, 3), "3", 3),
        (as_seed, str(2**32 - 1), 2**32 - 1),
        (as_number, "1e-3", 1e-3),
        (as_path, "a b/$(c)", Path("a b/$(c)")),
        (as_path, "\udc80", Path("\udc80")),  # bytes that are no UTF-8
        (as_path, "/".join(["a" * 255] * 15), Path("/".join(["a" * 255] * 15))),
    ],
)
def test_what_is_read(read: Callable[[str], Any], text: str, expected: Any) -> None:
    assert read(text) == expected


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (whole(1, 3), "4"),
        (whole(1, 3), "²"),
        (whole(1, 3), "9" * 9999),
        (as_seed, str(2**32)),
        (as_number, "nan"),
        (as_number, "1e39"),
        (as_number, "0x10"),
        (as_path, ""),
        (as_path, "a\0b"),
        (as_path, "a" * 256),
        (as_path, "ä" * 128),  # of two bytes each
        (as_path, "/".join(["a" * 255] * 17)),
    ],
)
def test_what_is_refused(read: Callable[[str], Any], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        read(text)


def test_a_name_that_the_terminal_cannot_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is printed in escapes; Python would raise UnicodeEncodeError."""
    assert main(["verify", f"--workdir={tmp_path}/\udc80"]) == 2
    assert r"\udc80 holds no checkpoint" in capsys.readouterr().err
