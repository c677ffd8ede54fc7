"""Put the quickstart's results into the README: its table and its picture.

python -m benchmarks.readme [--workdir=runs/quickstart]
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.documents import replace_between, split_at_marks
from multistep_cm.errors import UserError
from multistep_cm.files import write_text
from multistep_cm.reporting.tables import format_rows

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: python -m benchmarks.readme -->", "<!-- end of results -->"


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite README.md and docs/images/quickstart.png; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
    workdir = parser.parse_args(argv).workdir
    try:
        text = replace_table((ROOT / "README.md").read_text(), workdir / "results.json")
    except (UserError, OSError) as error:
        print(f"readme: {error}: run launch/quickstart.sh first", file=sys.stderr)
        return 2
    write_text(ROOT / "README.md", text)
    picture = ROOT / "docs" / "images" / "quickstart.png"
    shutil.copyfile(workdir / "samples.png", picture)
    print(f"wrote {ROOT / 'README.md'} and {picture}")
    return 0


def replace_table(readme: str, results_path: Path) -> str:
    """The README with the table of `results_path` between its two marks.

    Raises UserError when the marks are missing.
    """
    split_at_marks(readme, BEGIN, END, "README.md")
    results = json.loads(results_path.read_text())
    table = format_rows(results["rows"], results["floor"])
    return replace_between(readme, BEGIN, END, table, "README.md")


if __name__ == "__main__":
    sys.exit(main())
