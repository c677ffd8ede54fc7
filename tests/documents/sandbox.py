"""A folder like a fresh checkout in which documented commands run, each once."""

import argparse
import contextlib
import functools
import importlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from multistep_cm.commands.main import main
from multistep_cm.evaluation import classifier
from tests.documents.blocks import ROOT, Command, all_commands
from tests.documents.row import SMALL, Run
from tests.documents.runs import FOLDERS, RUNS

COPIED = ("launch", "configs", "docs")
FILES = ("README.md", "pyproject.toml", "setup.py")
PATIENCE = 600.0
A_TEST = "def test_a_sum() -> None:\n    assert 1 + 1 == 2\n"


class Parsed(Exception):
    """Raised in the place of a command's work, once its arguments are understood."""


class Sandbox:
    """Copies of what commands name, and what they have left so far."""

    def __init__(self, root: Path, digits_directory: Path) -> None:
        self.root = root
        self.said: dict[str, str] = {}
        self._documents = _documents()
        for name in COPIED:
            shutil.copytree(ROOT / name, root / name)
        for name in FILES:
            shutil.copy(ROOT / name, root / name)
        (root / "tfds").symlink_to(digits_directory)
        for index, label in enumerate("aabb"):
            folder = root / "photos" / label
            folder.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(index).integers(256, size=(9, 12, 3))
            for split in range(6):
                path = folder / f"{index}_{split}.png"
                Image.fromarray(noise.astype(np.uint8)).save(path)
        # For launch/test.sh, which would otherwise run this test again.
        (root / "tests" / "diffusion").mkdir(parents=True)
        (root / "tests" / "diffusion" / "test_sum.py").write_text(A_TEST)
        self._make_environment()

    def _make_environment(self) -> None:
        """`.venv` as launch/environment.sh leaves it, with this Python behind it."""
        tools = self.root / ".venv" / "bin"
        tools.mkdir(parents=True)
        for name, words in (("python", ""), ("multistep-cm", " -m multistep_cm")):
            path = tools / name
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
            path.chmod(0o755)
        script = "cksum <pyproject.toml && cksum <setup.py"
        printed = subprocess.check_output(["sh", "-c", script], cwd=ROOT, text=True)
        sums = " ".join(printed.splitlines())
        stamp = f"{sums} {self.root}"
        extras = "".join(f"{stamp} [{extra}]\n" for extra in ("", "test,dev"))
        (self.root / ".venv" / ".installed").write_text(extras)

    def run(self, run: Run, command: Command) -> str:
        """What the command printed, now or when it ran before; what it needs first."""
        if command.text not in self.said:
            for name in run.needs:
                self._ensure(name)
            for name in run.leaves:
                _remove(self.root / name)
            with contextlib.chdir(self.root), run.around():
                self.said[command.text] = self._execute(run, command)
            # Some commands rewrite documents: only the copies in here may change.
            assert _documents() == self._documents, f"{command.text} wrote to {ROOT}"
            for name in run.leaves:
                assert (self.root / name).exists(), f"{command.text} left no {name}"
        return self.said[command.text]

    def _ensure(self, name: str) -> None:
        """Run the documented command that leaves this file, unless it is there."""
        if (self.root / name).exists():
            return
        if name in FOLDERS:
            teacher, text = FOLDERS[name]
            words = [*shlex.split(text), f"--workdir={name}", *SMALL]
            if teacher:
                self._ensure(teacher)
                words.append(f"--config.teacher.workdir={teacher}")
            with contextlib.chdir(self.root):
                in_process(words)
            return
        (row,) = [row for row in RUNS if name in row.leaves]
        command = next(one for one in all_commands() if row.is_of(one))
        self.run(row, command)

    def _execute(self, run: Run, command: Command) -> str:
        text = command.text
        for old, new in run.replaced:
            assert old in text, f"{text} does not hold {old}"
            text = text.replace(old, new)
        if command.block.language == "python" and run.as_process:
            text = shlex.join(["python", "-c", text])
        elif command.block.language == "python":
            return run_python(text)
        if run.way == "parsed only":
            return parse(shlex.split(text))
        if run.as_process:
            return self._in_shell(text, run.appended, command.exports)
        assert not command.exports, "exported variables need a process of their own"
        return in_process([*expanded(shlex.split(text)), *run.appended])

    def _in_shell(
        self, text: str, appended: Sequence[str], exports: Sequence[str]
    ) -> str:
        """In bash, as in a terminal in the checkout with `.venv` active."""
        script = "\n".join([*exports, text])
        if appended:
            script += f" {shlex.join(appended)}"
        if text.startswith("export "):
            script += "\nexport -p"
        tools = str(self.root / ".venv" / "bin")
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=self.root,
            env={
                **os.environ,
                "PATH": f"{tools}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def _documents() -> dict[Path, bytes]:
    """What README.md and docs/ of the repository hold."""
    paths = [ROOT / "README.md", *(ROOT / "docs").rglob("*.*")]
    return {path: path.read_bytes() for path in paths}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def expanded(words: Sequence[str]) -> list[str]:
    """Words with a * as a shell expands them."""
    return [
        name
        for word in words
        for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
    ]


@contextlib.contextmanager
def small() -> Iterator[io.StringIO]:
    """One device, a classifier that hardly trains, and what is printed."""
    first = jax.devices()[:1]
    quick = functools.partial(classifier.TrainingSettings, num_steps=2)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(jax, "devices", lambda *_: first)
        patch.setattr(classifier, "TrainingSettings", quick)
        yield printed


def in_process(words: Sequence[str]) -> str:
    """Call the command's entry point; what it printed. It must end with 0."""
    with small() as printed:
        if words[0] == "multistep-cm":
            status = main(words[1:])
        elif words[:3] == ["python", "-m", "multistep_cm"]:
            status = main(words[3:])
        else:
            status = entry_point(words)(words[3:]) or 0
    assert status == 0, f"{shlex.join(words)} ended with {status}"
    return printed.getvalue()


def entry_point(words: Sequence[str]) -> Any:
    """The `main` of `python -m benchmarks.NAME`."""
    assert words[:2] == ["python", "-m"], words
    name = words[2]
    package = ROOT.joinpath(*name.split("."))
    module = importlib.import_module(f"{name}.run" if package.is_dir() else name)
    return module.main


def parse(words: Sequence[str]) -> str:
    """Let the command's own parser read its arguments, and stop before it works."""
    if words[:3] == ["pip", "install", "-e"]:
        extra = words[3].removeprefix(".[").removesuffix("]")
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert extra in project["optional-dependencies"]
        return ""
    real = argparse.ArgumentParser.parse_args

    def parse_args(*given: Any, **named: Any) -> None:
        raise Parsed(real(*given, **named))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(Parsed) as caught:
            entry_point(words)(words[3:])
    return str(caught.value)


def run_python(text: str) -> str:
    """Run a block of Python; what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "<a document>", "exec"), {"__name__": "__main__"})
    return printed.getvalue()
