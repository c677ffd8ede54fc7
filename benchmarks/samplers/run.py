"""Samplers against truth: exact denoisers, so that only the sampler can err.

  python -m benchmarks.samplers [--presets=ring,digits] [--calls=8,16,32] ..

Samples every preset of multistep_cm/truth/presets.py with DDIM, aDDIM, Heun and
ancestral sampling, all from the same noise, at equal numbers of network calls, and
measures how far the samples are from the distribution. What is measured stands in
WORKDIR/results.json and is not measured again; the document gets tables of all that
stands there, and a plot.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.documents import replace_between, split_at_marks
from benchmarks.samplers.plot import draw
from benchmarks.samplers.sampling import Results, empty_results, measure_preset
from benchmarks.samplers.summary import report
from multistep_cm.errors import UserError
from multistep_cm.files import write_text
from multistep_cm.truth.presets import PRESETS

DOCUMENT = Path(__file__).parents[2] / "docs" / "samplers.md"
BEGIN, END = "<!-- tables: python -m benchmarks.samplers -->", "<!-- end of tables -->"
CALLS = tuple(2**power for power in range(10))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write results, tables and plot; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.samplers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--presets", default=",".join(PRESETS), help="comma-separated")
    parser.add_argument(
        "--calls", default=",".join(map(str, CALLS)), help="of the network, at most"
    )
    parser.add_argument("--num_samples", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, default=Path("runs/samplers"))
    parser.add_argument(
        "--document",
        type=Path,
        default=DOCUMENT,
        help="gets the tables between its marks, and images/samplers.png beside it",
    )
    parser.add_argument(
        "--no_document", action="store_true", help="write results.json only"
    )
    arguments = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        presets = parse_presets(arguments.presets)
        calls = parse_calls(arguments.calls)
        if not arguments.no_document:
            # Now, and not after the minutes of measuring.
            split_at_marks(
                read(arguments.document), BEGIN, END, str(arguments.document)
            )
        results = open_results(arguments.workdir, arguments.num_samples, arguments.seed)
        for name in presets:
            measure_preset(name, calls, results, arguments.workdir)
        print(f"\n{report(results)}\n")
        print(f"minutes: {(time.perf_counter() - start) / 60:.1f}")
        print(f"results: {arguments.workdir / 'results.json'}")
        if not arguments.no_document:
            write_document(arguments.document, results)
    except UserError as error:
        print(f"samplers: {error}", file=sys.stderr)
        return 2
    return 0


def parse_presets(text: str) -> list[str]:
    """Names of presets from a comma-separated list; UserError for an unknown one."""
    for name in text.split(","):
        if name not in PRESETS:
            raise UserError(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
    return text.split(",")


def parse_calls(text: str) -> list[int]:
    """Numbers of calls, increasing; UserError unless all are whole and positive."""
    try:
        calls = sorted({int(part) for part in text.split(",")})
    except ValueError:
        calls = [0]
    if calls[0] < 1:
        raise UserError(
            f"--calls is {text!r}, expected positive whole numbers like 8,16,32"
        )
    return calls


def open_results(workdir: Path, num_samples: int, seed: int) -> Results:
    """What `workdir` holds already, or the beginning of it.

    Raises UserError when it holds results of other settings or cannot be used.
    """
    settings = {"num_samples": num_samples, "seed": seed}
    path = workdir / "results.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        results = json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be used: {error}") from error
    if results is None:
        return empty_results(num_samples, seed)
    found = {key: results.get(key) for key in settings}
    if found != settings:
        raise UserError(
            f"{path} holds results of {found}, asked for are {settings}: "
            "choose another --workdir"
        )
    return dict(results)


def read(document: Path) -> str:
    """Its text; UserError when it cannot be read."""
    try:
        return document.read_text()
    except OSError as error:
        raise UserError(f"{document} cannot be read: {error.strerror}") from error


def write_document(document: Path, results: Results) -> None:
    """The tables between the document's marks, and the plot beside it.

    Raises UserError when the document cannot be read or lacks the marks.
    """
    tables = report(results)
    new = replace_between(read(document), BEGIN, END, tables, str(document))
    write_text(document, new)
    picture = document.parent / "images" / "samplers.png"
    draw(results, picture)
    print(f"wrote {document} and {picture}")


if __name__ == "__main__":
    sys.exit(main())
