"""The commands of README.md, CONTRIBUTING.md and docs/ do what a reader is told."""

import re
from pathlib import Path

import pytest

from tests.documents.blocks import Command, all_commands
from tests.documents.row import Run
from tests.documents.runs import RUNS
from tests.documents.sandbox import Sandbox


@pytest.fixture(scope="session")
def sandbox(
    tmp_path_factory: pytest.TempPathFactory, digits_directory: Path
) -> Sandbox:
    """One folder for all commands, in which those of a document build on another."""
    return Sandbox(tmp_path_factory.mktemp("checkout"), digits_directory)


def cases() -> list[object]:
    """Each different command once, with the row that runs it and how as its name."""
    found: dict[str, object] = {}
    for command in all_commands():
        for run in RUNS:
            if run.is_of(command) and command.text not in found:
                stood_in = getattr(run.around, "__name__", "nullcontext")
                how = run.way if stood_in == "nullcontext" else f"runs with {stood_in}"
                line = command.text.splitlines()[0][:60]
                found[command.text] = pytest.param(
                    command,
                    run,
                    marks=[pytest.mark.slow] if run.slow else [],
                    id=f"{how}: {command.where}: {line}",
                )
    return list(found.values())


@pytest.mark.parametrize(("command", "run"), cases())
def test_a_documented_command(command: Command, run: Run, sandbox: Sandbox) -> None:
    said = sandbox.run(run, command)
    assert re.search(run.says, said), said
