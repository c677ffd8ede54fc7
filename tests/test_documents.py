"""README and docs/: links lead somewhere, and commands are commands that exist."""

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from multistep_cm.commands.main import COMMANDS, split_overrides
from multistep_cm.config import load_config
from tests.documents.blocks import all_commands, said_in_passing, simple_commands
from tests.documents.sandbox import parse

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

# What stands for something of the reader's own.
STAND_INS = {"CONFIG": "configs/digits.py"}


def commands() -> Iterator[list[str]]:
    """The words of every simple command in the blocks of shell, marked or not."""
    for command in all_commands():
        if command.block.language == "python":
            continue
        for text in simple_commands(command.text):
            yield shlex.split(text.replace("$i", "0"))


ALL = [pytest.param(words, id=" ".join(words)[:70]) for words in commands()]


IN_PASSING = sorted({text for path in DOCUMENTS for text in said_in_passing(path)})


@pytest.mark.parametrize("text", IN_PASSING)
def test_a_command_in_passing_would_be_understood(text: str) -> None:
    test_a_command_would_be_understood(shlex.split(text))


def test_there_are_commands() -> None:
    said = [" ".join(param.values[0]) for param in ALL]  # type: ignore[arg-type]
    assert any(line.startswith("multistep-cm train") for line in said)
    assert any(line.startswith("python -m benchmarks") for line in said)


@pytest.mark.parametrize("words", ALL)
def test_a_command_would_be_understood(words: list[str]) -> None:
    if words[0] == "sbatch":
        words = [word for word in words[1:] if not word.startswith("--nodes")]
    if words[0] == "multistep-cm":
        understand(words[1:])
    elif words[:3] == ["python", "-m", "multistep_cm"]:
        understand(words[3:])
    elif words[:2] == ["python", "-m"]:
        parse(words)
    elif words[0] == "bash" or words[0].startswith("launch/"):
        script = words[1] if words[0] == "bash" else words[0]
        assert (ROOT / script).is_file(), script
        if "--" in words:
            understand(words[words.index("--") + 1 :])
        elif len(words) > 2 and words[2] in COMMANDS:
            understand(words[2:])
    else:
        assert words[0] in ("pip", "export", "git", "docker"), words


def understand(words: list[str]) -> None:
    """Parse a command of ours as it would, and load its config with its overrides."""
    if words == ["COMMAND", "--help"]:
        return
    name = words[0]
    assert name in COMMANDS
    rest, overrides = split_overrides(words[1:])
    module = importlib.import_module(f"multistep_cm.commands.{name}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    arguments = parser.parse_args(rest)
    if getattr(arguments, "config", None):
        config = STAND_INS.get(arguments.config, arguments.config)
        # A folder of the reader's own cannot be looked at for its classes.
        config = re.sub(r"folder=[^,]+", "name=cifar10", config)
        load_config(str(ROOT / config), overrides)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        assert ROOT in (linked, *linked.parents), target
        if anchor:
            assert anchor in anchors(linked.read_text()), target


def anchors(text: str) -> set[str]:
    """Of the headings, as they are made on the web."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def test_every_document_is_in_the_list_for_newcomers() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for path in ROOT.glob("docs/*.md"):
        assert path.name == "README.md" or f"]({path.name})" in index, path.name
