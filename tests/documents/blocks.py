"""The commands that README.md, CONTRIBUTING.md and docs/ tell a reader to type."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELL = ("bash", "sh")
COMMENT = re.compile(r"""('[^']*'|"[^"]*")|(?:(?<=\s)|^)#.*""")
"""Of a shell, which begins a word; quotations are skipped."""
MARK = re.compile(r"<!-- needs: (.*) -->")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of code: where it stands, and what the test may know of it."""

    document: str
    line: int
    language: str
    text: str
    need: str
    """What the mark above it says that it needs; empty without one."""
    section: str
    """The prose of its section that a reader sees, without code and marks."""


@dataclasses.dataclass(frozen=True)
class Command:
    """One command on one line, or one loop on several, or a whole block of Python."""

    block: Block
    text: str
    exports: tuple[str, ...] = ()
    """The lines of its block that export variables, which stand before it."""

    @property
    def where(self) -> str:
        return f"{self.block.document}:{self.block.line}"


def documents() -> list[Path]:
    """What a newcomer reads; the changelog has no commands."""
    named = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return [*named, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path) -> Iterator[Block]:
    """The fenced blocks of a document, in order."""
    lines = path.read_text().splitlines()
    mark, line = "", 0
    while line < len(lines):
        fence = re.fullmatch(r"```(\w*)", lines[line])
        if fence is None:
            found = MARK.fullmatch(lines[line])
            # A mark is of the block under it; nothing but empty lines stand between.
            mark = found[1] if found else mark if not lines[line] else ""
            line += 1
            continue
        end = lines.index("```", line + 1)
        text = "\n".join(lines[line + 1 : end])
        name = str(path.relative_to(ROOT)) if ROOT in path.parents else path.name
        section = _section(lines, line)
        yield Block(name, line + 1, fence[1], text, mark, section)
        mark, line = "", end + 1


def _section(lines: list[str], line: int) -> str:
    """From the heading above to the next one: what is neither code nor a mark."""
    kept: list[str] = []
    inside = False
    for number, text in enumerate(lines):
        if text.startswith("```"):
            inside = not inside
        elif text.startswith("#") and not inside:
            if number > line:
                break
            kept = [text]
        elif not inside and not text.startswith("<!--"):
            kept.append(text)
    return " ".join(kept)


def marks(path: Path) -> int:
    """How many marks stand in a document, above a block or not."""
    return len(re.findall(rf"^{MARK.pattern}$", path.read_text(), re.MULTILINE))


def commands(block: Block) -> list[Command]:
    """What a block tells the reader to run; nothing for the output of a program."""
    if block.language == "python":
        return [Command(block, block.text)]
    if block.language not in SHELL:
        return []
    exports: list[str] = []
    found = []
    for text in shell_commands(block.text):
        if text.startswith("export "):
            exports.append(text)
        else:
            found.append(Command(block, text, tuple(exports)))
    return found or [Command(block, text) for text in exports]


def shell_commands(text: str) -> list[str]:
    """Commands on one line each, without comments; loops whole, to what ends them."""
    joined = re.sub(r"[ \t]*\\\n[ \t]*", " ", text)
    found: list[str] = []
    depth = 0
    for line in joined.splitlines():
        line = COMMENT.sub(lambda found: found[1] or "", line).strip()
        if not line:
            continue
        if depth:
            found[-1] += f"\n{line}"
        else:
            found.append(line)
        depth += len(re.findall(r"(?:^|;\s*)(?:for|while)\s", line))
        depth -= len(re.findall(r"(?:^|;\s*)done\b", line))
    if depth:
        raise ValueError(f"a loop does not end: {text}")
    return found


def simple_commands(text: str) -> list[str]:
    """The commands that a line or a loop consists of, without the words of the loop."""
    parts = re.split(r"\n|;|&&|&\s*$", text, flags=re.MULTILINE)
    stripped = [
        re.sub(r"^(do|done|wait)\b", "", part.strip()).strip() for part in parts
    ]
    return [part for part in stripped if part and not part.startswith("for ")]


def said_in_passing(path: Path) -> list[str]:
    """Commands in the prose, and after the $ of a transcript: not to be typed as is.

    Those with ".." stand for others and are left out, as are names without an option.
    """
    text = path.read_text()
    spans = re.findall(
        r"`((?:python -m benchmarks\.|multistep-cm \w+ -)[^`\n]*)`", text
    )
    joined = re.sub(r"[ \t]*\\\n[ \t]*", " ", text)
    transcripts = re.findall(r"^\$ (.*)$", joined, re.MULTILINE)
    return [found for found in [*spans, *transcripts] if ".." not in found]


def all_commands() -> list[Command]:
    """Of all documents, in the order in which they stand there."""
    return [
        command
        for path in documents()
        for block in blocks(path)
        for command in commands(block)
    ]
