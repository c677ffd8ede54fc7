"""README and docs/: links lead somewhere, and commands are commands that exist."""

import argparse
import functools
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multistep_cm.commands.main import COMMANDS, split_overrides
from multistep_cm.config import load_config

ROOT = Path(__file__).parents[1]
KEYWORDS = ("do", "done", "time", "sbatch")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

# What stands for something of the reader's own.
STAND_INS = {"CONFIG": "configs/digits.py"}


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command in the blocks of shell, without loops and comments."""
    for block in code_blocks(text, "(?:bash|sh)"):
        joined = block.replace("\\\n", " ")
        lines = re.sub(r"(^|\s)#.*", "", joined, flags=re.MULTILINE)
        for line in re.split(r"\n|;|&&|&\s*$", lines, flags=re.MULTILINE):
            words = shlex.split(line.replace("$i", "0"))
            while words and (words[0] in KEYWORDS or words[0].startswith("--nodes")):
                words = words[1:]
            if words and words[0] != "for":
                yield words


ALL = [
    pytest.param(words, id=f"{name}: {' '.join(words)[:60]}")
    for name, path in zip(NAMES, DOCUMENTS, strict=True)
    for words in commands(path.read_text())
]


def test_there_are_commands() -> None:
    said = [" ".join(param.values[0]) for param in ALL]  # type: ignore[arg-type]
    assert any(line.startswith("multistep-cm train") for line in said)
    assert any(line.startswith("python -m benchmarks") for line in said)


@pytest.mark.parametrize("words", ALL)
def test_a_command_would_be_understood(words: list[str]) -> None:
    if words[0] == "multistep-cm":
        understand(words[1:])
    elif words[:3] == ["python", "-m", "multistep_cm"]:
        understand(words[3:])
    elif words[:2] == ["python", "-m"]:
        flags = {word.partition("=")[0] for word in words if word[:2] == "--"}
        flags = {flag for flag in flags if not flag.startswith("--config.")}
        said = help_of(words[2])
        assert all(flag in said for flag in flags)
    elif words[0] == "bash" or words[0].startswith("launch/"):
        script = words[1] if words[0] == "bash" else words[0]
        assert (ROOT / script).is_file(), script
        if "--" in words:
            understand(words[words.index("--") + 1 :])
        elif len(words) > 2 and words[2] in COMMANDS:
            understand(words[2:])
    else:
        assert words[0] in ("pip", "source", "export", "wait", "git", "docker"), words


@functools.cache
def help_of(module: str) -> str:
    """What `python -m MODULE --help` prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


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


def test_the_example_of_a_network_learns() -> None:
    text = (ROOT / "docs" / "network.md").read_text()
    (example,) = code_blocks(text.split("<!-- example: network -->")[1], "python")
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, check=True
    )
    numbers = re.findall(r"[\d.]+", done.stdout)
    mean, deviation = map(float, numbers)
    # Points are drawn around 2 with a deviation of 0.1.
    assert abs(mean - 2) < 0.05
    assert 0.03 < deviation < 0.2
