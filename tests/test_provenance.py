"""Which code wrote a file."""

import re
import shutil
import subprocess
from pathlib import Path

import jax
import pytest

import multistep_cm
from multistep_cm import provenance


def test_versions() -> None:
    found = provenance.versions("jax")
    assert found == {"multistep_cm": multistep_cm.__version__, "jax": jax.__version__}


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_commit_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "package" / "provenance.py"
    code.parent.mkdir()
    code.touch()
    monkeypatch.setattr(provenance, "__file__", str(code))
    assert provenance.git_commit() is None  # no checkout
    git(tmp_path, "init")
    (tmp_path / "other").touch()
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-m", "other")
    assert provenance.git_commit() is None  # installed in a checkout of something else
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-m", "code")
    commit = provenance.git_commit()
    assert commit == git(tmp_path, "rev-parse", "HEAD")
    assert commit is not None
    assert re.fullmatch("[0-9a-f]{40}", commit)
    code.write_text("changed")
    assert provenance.git_commit() == f"{commit}-dirty"


def test_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.git_commit() is None
