"""Every documented command is run by a row of the table, or says what it needs."""

import re
from pathlib import Path

import pytest

from tests.documents.blocks import (
    Command,
    all_commands,
    blocks,
    commands,
    documents,
    marks,
    shell_commands,
    simple_commands,
)
from tests.documents.row import Run
from tests.documents.runs import FOLDERS, RUNS

COMMANDS = all_commands()
NEEDED = [command for command in COMMANDS if command.block.need]


def name(command: Command) -> str:
    return f"{command.where}: {command.text.splitlines()[0][:60]}"


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_a_command_is_run_by_one_row_or_marked(command: Command) -> None:
    rows = [run for run in RUNS if run.is_of(command)]
    if command.block.need:
        assert not rows, "it is marked and run"
    else:
        assert len(rows) == 1, [run.pattern for run in rows]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.pattern)
def test_every_row_runs_something(run: Run) -> None:
    found = [command for command in COMMANDS if run.is_of(command)]
    assert found
    for old, _ in run.replaced:
        assert all(old in command.text for command in found), old


def test_what_rows_need_is_left_by_one() -> None:
    for name in {name for run in RUNS for name in run.needs}:
        makers = [run for run in RUNS if name in run.leaves]
        assert len(makers) + (name in FOLDERS) == 1, name


@pytest.mark.parametrize("command", NEEDED, ids=name)
def test_a_reader_sees_what_a_marked_command_needs(command: Command) -> None:
    """All words of the mark but the short ones stand in the prose of the section."""
    prose = set(re.findall(r"\w+", command.block.section.lower()))
    words = re.findall(r"\w{3,}", command.block.need.lower())
    assert set(words) <= prose, set(words) - prose


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_mark_stands_above_a_command(path: Path) -> None:
    marked = [block for block in blocks(path) if block.need]
    assert len(marked) == marks(path)
    assert all(commands(block) for block in marked)


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_a_block_without_a_language_is_no_command(path: Path) -> None:
    """What a reader might type is a block of bash; other blocks are output."""
    for block in blocks(path):
        if block.language not in ("bash", "sh", "python"):
            for line in block.text.splitlines():
                assert not re.match(r"(multistep-cm|python|bash|pip) ", line), line


def test_a_document_is_read_as_its_reader_does(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(
        "# A\nSeen.\n<!-- needs: a TPU -->\n\n```bash\na \\\n    -b=1  # why\n"
        "export X='a # b'\n# all of it\nfor i in 0 1; do\n  c $i &\ndone; wait\n```\n"
        "# B\n```\nb\n```\n\n```python\nif x:\n    y\n```\n<!-- needs: x -->\n"
    )
    first, second, third = blocks(path)
    assert (first.document, first.line, first.language) == ("a.md", 5, "bash")
    assert (first.need, first.section) == ("a TPU", "# A Seen. ")
    loop, line = commands(first)[::-1]
    assert line.text == "a -b=1"
    assert loop.text == "for i in 0 1; do\nc $i &\ndone; wait"
    assert loop.exports == ("export X='a # b'",)
    assert (second.need, second.section, commands(second)) == ("", "# B ", [])
    assert [command.text for command in commands(third)] == ["if x:\n    y"]
    assert marks(path) == 2


def test_a_loop_is_whole_and_its_commands_are_found() -> None:
    (loop,) = shell_commands("for i in 0 1; do\n  a $i \\\n    b &\ndone; wait")
    assert simple_commands(loop) == ["a $i b"]
    assert simple_commands("a && b; c") == ["a", "b", "c"]
    with pytest.raises(ValueError, match="does not end"):
        shell_commands("for i in 0 1; do\n  a")
