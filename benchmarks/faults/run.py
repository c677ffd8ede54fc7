"""Faults, tried until it holds: `python -m benchmarks.faults --trials=200 --seed=0`.

Starts small training runs and disturbs them: kills in every phase, damaged files, full
disks, clocks that jump, lost workers. Then it lets them go on and compares all that
they hold with runs that nobody disturbed. Every trial is a line of JSON in --output;
the command goes on where it was stopped, and writes the summary of all lines between
the marks of --document. A fault that is not survived ends the command with 1.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.documents import replace_between, split_at_marks
from benchmarks.faults.campaign import Campaign
from benchmarks.faults.layout import GOOD, KINDS, ROOT
from benchmarks.faults.tables import summary
from multistep_cm.errors import UserError
from multistep_cm.files import write_text

DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: python -m benchmarks.faults -->", "<!-- /faults -->"


def main(argv: Sequence[str] | None = None) -> int:
    """Try what is missing and write the summary; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--trials", type=int, default=200, help="of kills; other kinds in proportion")
    add("--seed", type=int, default=0, help="of all that is drawn (default 0)")
    add("--kinds", default=",".join(KINDS), help="comma-separated (default: all)")
    add("--output", type=Path, default=Path("runs/faults"), metavar="DIR")
    add("--document", type=Path, default=DOCUMENT, help="gets the summary")
    add("--no_document", action="store_true", help="write the results only")
    add("--only_write", action="store_true", help="try nothing")
    arguments = parser.parse_args(argv)
    try:
        kinds = parse_kinds(arguments.kinds)
        if arguments.trials < 1:
            raise UserError(f"--trials is {arguments.trials}, expected at least 1")
        if not arguments.no_document:
            # Now, and not after the hours of trials.
            split_at_marks(
                read(arguments.document), BEGIN, END, str(arguments.document)
            )
        campaign = Campaign(arguments.output.resolve(), arguments.seed)
        if not arguments.only_write:
            with contextlib.closing(campaign):
                for kind in kinds:
                    campaign.run(kind, arguments.trials)
        records = campaign.records()
        text = summary(records)
        print(f"\n{text}\n\nresults: {campaign.path}")
        if not arguments.no_document:
            new = replace_between(
                read(arguments.document), BEGIN, END, text, str(arguments.document)
            )
            write_text(arguments.document, new)
            print(f"wrote {arguments.document}")
    except UserError as error:
        print(f"faults: {error}", file=sys.stderr)
        return 2
    return int(any(record["outcome"] not in GOOD for record in records))


def parse_kinds(text: str) -> list[str]:
    """Kinds from a comma-separated list; UserError for an unknown one."""
    for name in text.split(","):
        if name not in KINDS:
            raise UserError(f"no kind {name!r}; there are: {', '.join(KINDS)}")
    return text.split(",")


def read(document: Path) -> str:
    """Its text; UserError when it cannot be read."""
    try:
        return document.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{document} cannot be read: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
