"""Where a file came from: the versions and the commit of the code that wrote it."""

import importlib.metadata
import subprocess
from pathlib import Path

from multistep_cm import __version__


def versions(*distributions: str) -> dict[str, str]:
    """Our version and those of `distributions`, by name."""
    others = {name: importlib.metadata.version(name) for name in distributions}
    return {"multistep_cm": __version__, **others}


def git_commit() -> str | None:
    """The commit that this code is checked out at; None where it is no checkout.

    "-dirty" follows it when files that git knows have changed since.
    """
    here = Path(__file__)

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here.parent), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        return done.stdout.strip()

    try:
        # An installation may lie in a folder of another repository.
        git("ls-files", "--error-unmatch", here.name)
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changed else commit
