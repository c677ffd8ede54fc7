"""What holds for any input: it works, or one sentence says why not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from multistep_cm.commands.main import main
from multistep_cm.errors import LONGEST, UserError

# A fixture that stays through all examples of a test is what these tests want.
hypothesis_settings = hypothesis.settings(
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ]
)


def fewer(divisor: int) -> hypothesis.settings:
    """Settings for a test whose examples are slow: a part of the profile's number."""
    most = hypothesis.settings().max_examples
    return hypothesis.settings(
        hypothesis_settings, max_examples=max(5, most // divisor)
    )


def assert_one_sentence(message: str) -> None:
    """It is one that any terminal can print and that a person can read."""
    assert message.strip()
    assert len(message.splitlines()) == 1, message
    assert message.isprintable(), message
    assert len(message) <= LONGEST
    assert "Traceback" not in message


def refusal(call: Callable[[], Any]) -> str:
    """The sentence of the UserError that `call` raises; "" when it raises none.

    Any other exception goes on and fails the test.
    """
    try:
        call()
    except UserError as error:
        assert_one_sentence(str(error))
        return str(error)
    return ""


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command line; what it says when it refuses, "" when it does not.

    Any other exception, SystemExit too, goes on and fails the test.
    """
    capsys.readouterr()
    status = main([str(word) for word in words])
    said = capsys.readouterr().err
    if status != 2:
        assert status in (0, 1)
        return ""
    assert said.endswith("\n")
    assert_one_sentence(said.removesuffix("\n")[:LONGEST])
    return said


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below, to see that a refusal has changed nothing."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
