"""What stands behind an option, read and checked, and errors in one sentence.

argparse would print its usage and a message that says too little.
"""

import argparse
import difflib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from multistep_cm.errors import UserError
from multistep_cm.files import path_problem
from multistep_cm.values import LARGEST_INTEGER, LARGEST_NUMBER, LONGEST_NUMBER

LARGEST_SEED = 2**32 - 1
MOST_IMAGES = 10**8
MOST_STEPS = 10**6

# What argparse says, and what we say.
_SENTENCES = (
    (r"argument ([^:]+): expected (?:one|at least one) argument", r"\1 has no value"),
    (
        r"argument ([^:]+): ignored explicit argument (.*)",
        r"\1 takes no value, but has \2",
    ),
    (
        r"argument ([^:]+): invalid choice: (.*) \(choose from (.*)\)",
        r"\1 is \2, expected one of: \3",
    ),
    (r"argument ([^:]+): (.*)", r"\1 \2"),
    (r"the following arguments are required: (.*)", r"\1 is missing"),
    (r"unrecognized arguments: (.*)", r"there is no option \1"),
)


class Parser(argparse.ArgumentParser):
    """One that raises UserError where argparse prints its usage and ends Python."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with what is wrong, and where to read what would be right."""
        for pattern, ours in _SENTENCES:
            found = re.fullmatch(pattern, message, re.DOTALL)
            if found:
                message = found.expand(ours) + self._nearest(found[1])
                break
        raise UserError(f"{message}; `{self.prog} --help` says what there is")

    def _nearest(self, word: str) -> str:
        known = self._option_string_actions
        if not word.startswith("--") or word.partition(" ")[0] in known:
            return ""
        wanted = re.split("[= ]", word)[0][:100]
        near = difflib.get_close_matches(wanted, [*known], n=1, cutoff=0.7)
        return f" (did you mean {near[0]}?)" if near else ""


def whole(low: int, high: int = LARGEST_INTEGER) -> Callable[[str], int]:
    """A reader of whole numbers from `low` to `high`, for argparse's `type`."""

    def read(text: str) -> int:
        try:
            number = int(text) if len(text) <= LONGEST_NUMBER else None
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            shown = f"{text!r:.200}" if number is None else number
            raise argparse.ArgumentTypeError(
                f"is {shown}, expected a whole number from {low} to {high}"
            )
        return number

    return read


as_seed = whole(0, LARGEST_SEED)


def as_number(text: str) -> float:
    """A number that float32 can hold, for argparse's `type`."""
    try:
        number = float(text) if len(text) <= LONGEST_NUMBER else math.nan
    except ValueError:
        number = math.nan
    if not abs(number) <= LARGEST_NUMBER:
        raise argparse.ArgumentTypeError(f"is {text!r:.200}, expected a finite number")
    return number


def as_path(text: str) -> Path:
    """A name that a file can have, for argparse's `type`.

    Not the empty one, which an unset variable of a shell leaves: it would stand for
    the folder in which the command is called.
    """
    problem = path_problem(text)
    if problem:
        raise argparse.ArgumentTypeError(
            f"is {text!r:.200}, expected the name of a file or folder: {problem}"
        )
    return Path(text)
