"""Plans of the paper's configs on TPU slices, written into docs/scaling.md.

  python -m benchmarks.scaling [--only_write]

Compiles every row of `layout.py` by `multistep-cm plan`, which needs the extra `tpu`
and no TPU: about three minutes of a core for each, more for the large network. What was
planned is kept in --workdir: the command goes on where it was stopped, and --only_write
writes the tables of what is there.
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.documents import replace_between
from benchmarks.scaling.layout import CONFIG, Row, all_rows
from benchmarks.scaling.text import chips_table, printed_plans, weak_table
from multistep_cm.errors import UserError
from multistep_cm.files import write_text

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "scaling.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Plan what is missing and write the tables; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workdir", type=Path, default=Path("runs/scaling"))
    add("--workers", type=int, default=1, help="plans side by side (default 1)")
    add("--document", type=Path, default=DOCUMENT, help="where the tables go")
    add("--only_write", action="store_true", help="compile nothing")
    arguments = parser.parse_args(argv)
    workdir: Path = arguments.workdir
    workdir.mkdir(parents=True, exist_ok=True)
    missing = [row for row in all_rows() if not _plan_file(workdir, row).is_file()]
    try:
        if not arguments.only_write:
            with concurrent.futures.ThreadPoolExecutor(arguments.workers) as pool:
                for said in pool.map(lambda row: make_plan(workdir, row), missing):
                    print(said, flush=True)
        write_tables(workdir, arguments.document)
    except UserError as error:
        print(f"benchmarks.scaling: {error}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.document}")
    return 0


def command(row: Row) -> list[str]:
    """What a user would type for this row, without the file to write."""
    words = [
        "multistep-cm",
        "plan",
        f"--config={CONFIG}:size={row.size},stage={row.stage}",
        f"--topology={row.topology}",
    ]
    if row.batch_size != 2048:
        words.append(f"--config.training.batch_size={row.batch_size}")
    if row.accumulation != 1:
        words.append(f"--config.training.accumulation={row.accumulation}")
    return words


def make_plan(workdir: Path, row: Row) -> str:
    """Plan one row and keep what was printed and written; what to say of it."""
    environment = dict(os.environ)
    if row.flags:
        environment["LIBTPU_INIT_ARGS"] = libtpu_flags(row.chip)
    words = command(row)
    done = subprocess.run(
        [
            *[sys.executable, "-m", "multistep_cm", *words[1:]],
            f"--output={_plan_file(workdir, row).absolute()}",
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"{row.name} failed: {done.stderr.strip().splitlines()[-1:]}")
    kept = [line for line in done.stdout.splitlines() if not line.startswith("wrote ")]
    printed = "\n".join([f"$ {' '.join(words)}", *kept])
    write_text(workdir / f"{row.name}.txt", printed + "\n")
    return f"planned {row.name}"


def libtpu_flags(chip: str) -> str:
    """The lines for libtpu of the chip's file, as the launch scripts give them."""
    lines = (ROOT / "launch" / "xla_flags" / f"{chip}.txt").read_text().splitlines()
    return " ".join(x.removeprefix("libtpu ") for x in lines if x.startswith("libtpu "))


def write_tables(workdir: Path, document: Path) -> None:
    """Put the tables of all plans that are there between their marks."""
    rows = [row for row in all_rows() if _plan_file(workdir, row).is_file()]
    plans = {row: json.loads(_plan_file(workdir, row).read_text()) for row in rows}
    printed = {row: (workdir / f"{row.name}.txt").read_text() for row in rows}
    if not document.is_file():
        raise UserError(f"--document: there is no file {document}")
    text = document.read_text()
    for name, table in (
        ("chips", chips_table(plans)),
        ("weak", weak_table(plans)),
        ("plans", printed_plans(printed)),
    ):
        begin, end = (
            f"<!-- {name}: python -m benchmarks.scaling -->",
            f"<!-- /{name} -->",
        )
        text = replace_between(text, begin, end, table, document.name)
    write_text(document, text)


def _plan_file(workdir: Path, row: Row) -> Path:
    return workdir / f"{row.name}.json"
