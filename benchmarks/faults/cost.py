"""What verification costs: `python -m benchmarks.faults.cost`.

Saves and restores states of several sizes on this machine, in turns with and without
the sha256 of every leaf, and writes the least times between the marks of --document:
what else the machine does only adds to them. A train loop waits for the call of `save`;
the rest goes on behind it.
"""

import argparse
import contextlib
import json
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from benchmarks.checkpoint import make_state, parse_sizes, save_and_restore
from benchmarks.documents import replace_between, split_at_marks
from benchmarks.faults.layout import ROOT, Record
from benchmarks.faults.run import DOCUMENT, read
from benchmarks.records import write_record
from multistep_cm import checkpoints, digests
from multistep_cm.errors import UserError
from multistep_cm.files import write_text

BEGIN, END = "<!-- cost: python -m benchmarks.faults.cost -->", "<!-- /cost -->"
WAYS = ("bare", "verified")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the table; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sizes", default="8,32,96", help="MiB of state (default 8,32,96)")
    add("--rounds", type=int, default=15, help="of each size, with and without")
    add("--folder", type=Path, help="where to save (default: a temporary one)")
    add("--output", type=Path, default=ROOT / "runs" / "faults" / "cost.json")
    add("--document", type=Path, default=DOCUMENT, help="gets the table")
    add("--no_document", action="store_true", help="write the results only")
    arguments = parser.parse_args(argv)
    try:
        sizes = parse_sizes(arguments.sizes)
        if arguments.rounds < 1:
            raise UserError(f"--rounds is {arguments.rounds}, expected at least 1")
        if not arguments.no_document:
            split_at_marks(
                read(arguments.document), BEGIN, END, str(arguments.document)
            )
        results: Record = {"device": jax.devices()[0].device_kind, "sizes": []}
        results["machine"] = platform.machine()
        for size in sizes:
            row = measure(size, arguments.rounds, arguments.folder)
            results["sizes"].append(row)
            print(json.dumps(row), flush=True)
        write_record(arguments.output, results)
        text = table(results["sizes"])
        print(f"\n{text}\n\nresults: {arguments.output}")
        if not arguments.no_document:
            document = read(arguments.document)
            name = str(arguments.document)
            new = replace_between(document, BEGIN, END, text, name)
            write_text(arguments.document, new)
            print(f"wrote {arguments.document}")
    except UserError as error:
        print(f"cost: {error}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def unverified() -> Iterator[None]:
    """Saves make no digests and restores check none."""

    async def none(*arguments: Any, **options: Any) -> list[Any]:
        return []

    with (
        mock.patch.object(digests.DigestHandler, "async_save", none),
        mock.patch.object(digests.DigestHandler, "finalize", lambda *_: None),
        mock.patch.object(digests.DigestHandler, "restore", lambda *_: {}),
        mock.patch.object(checkpoints._Step, "find_damage", lambda _: None),
    ):
        yield


def measure(size: int, rounds: int, folder: Path | None) -> Record:
    """Least seconds for a state of `size` MiB, with and without verification."""
    trees = jax.block_until_ready(make_state(size))
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for number in range(rounds + 1):
            # Turn about in which of the two goes first.
            for verified in (number % 2 == 0, number % 2 == 1):
                way = WAYS[verified]
                guard = contextlib.nullcontext() if verified else unverified()
                with guard:
                    found = save_and_restore(Path(name) / way / str(number), trees)
                # The first round compiles and imports.
                for key, value in found.items() if number else ():
                    seconds.setdefault(f"{way}_{key}", []).append(value)
    least = {key: min(values) for key, values in seconds.items()}
    return {"mib": size, "rounds": rounds, **least}


def table(rows: Sequence[Record]) -> str:
    """Without and with verification; percents are of the whole save or restore."""
    names = {
        "wait": "the loop waits",
        "wait_cpu": "of that, CPU time of its thread",
        "save": "save on disk",
        "save_cpu": "CPU time of it, all threads",
        "restore": "restore",
        "restore_cpu": "CPU time of it, all threads",
    }
    lines = ["| state | milliseconds of | without | with | more |"]
    lines.append("|---:|---|---:|---:|---:|")
    for row in rows:
        for key, name in names.items():
            bare, verified = (1000 * row[f"{way}_{key}"] for way in WAYS)
            more = f"{verified - bare:+.1f}"
            if key in ("wait", "save", "restore"):
                # Of the whole save: what the loop's waiting must be compared with.
                whole = 1000 * row["bare_restore" if key == "restore" else "bare_save"]
                more += f" ({(verified - bare) / whole:+.1%})"
            cells = f"{bare:.1f} | {verified:.1f} | {more}"
            lines.append(f"| {row['mib']} MiB | {name} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
