"""What the paper leaves open, tried on the digits: one student for each variation.

  python -m benchmarks.ablations [--quickstart=runs/quickstart] [--steps=1] [NAME ..]

Each variation changes the config of `configs/digits.py:stage=cd` in one place, trains a
student from the quickstart's teacher, measures it, and writes its row into
docs/ablations.md, beside the rows that are there. Without names: all of them. Finished
runs are not trained again.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.documents import replace_between, split_at_marks
from benchmarks.quickstart import CONFIG
from multistep_cm.config import load_config
from multistep_cm.errors import UserError
from multistep_cm.evaluation.evaluate import evaluate_run, load_reference
from multistep_cm.generation import sampling_options
from multistep_cm.training.loop import train
from multistep_cm.workdir import read_config, write_text

DOCUMENT = Path(__file__).parents[1] / "docs" / "ablations.md"
BEGIN, END = "<!-- rows: python -m benchmarks.ablations -->", "<!-- end of rows -->"

VARIATIONS: Mapping[str, Mapping[str, str]] = {
    "as_configured": {},
    "weight_snr_plus_1": {"consistency.weight": "snr_plus_1"},
    "weight_sqrt_snr_plus_1": {"consistency.weight": "sqrt_snr_plus_1"},
    "weight_truncated_snr": {"consistency.weight": "truncated_snr"},
    "norm_element": {"consistency.norm": "element"},
    "huber_1": {"consistency.huber_epsilon": "1.0"},
    "hop_ddim": {"consistency.hop": "ddim"},
    "hop_heun": {"consistency.hop": "heun"},
    "grid_64_1280": {
        "consistency.teacher_steps_start": "64",
        "consistency.teacher_steps_end": "1280",
    },
    "grid_32": {
        "consistency.teacher_steps_start": "32",
        "consistency.teacher_steps_end": "32",
    },
    "grid_8_64": {
        "consistency.teacher_steps_start": "8",
        "consistency.teacher_steps_end": "64",
    },
    "learning_rate_5e-4": {"training.learning_rate": "5e-4"},
    "learning_rate_2e-3": {"training.learning_rate": "2e-3"},
    "no_decay": {"training.decay": "constant"},
    "ema_0.95": {"training.ema_decay": "0.95"},
    "from_scratch": {"teacher.initialize_student": "False"},
}
"""Name of a variation to the config keys that it sets."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train and measure the variations asked for; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(VARIATIONS))
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--steps", type=int, default=1, help="of the student: K")
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablations"))
    arguments = parser.parse_args(argv)
    try:
        for name in arguments.names or VARIATIONS:
            if name not in VARIATIONS:
                expected = ", ".join(VARIATIONS)
                raise UserError(f"no variation {name!r}; there are: {expected}")
            row = run_variation(
                name, arguments.steps, arguments.quickstart, arguments.workdir
            )
            if row is None:
                return 1
            keep_row(DOCUMENT, row)
    except UserError as error:
        print(f"ablations: {error}", file=sys.stderr)
        return 2
    return 0


def run_variation(
    name: str, steps: int, quickstart: Path, workdir: Path
) -> dict[str, str] | None:
    """Train and measure one student; its row, or None when SIGTERM stopped it."""
    overrides = {
        "teacher.workdir": str(quickstart / "teacher"),
        "sampling.num_previews": "0",
        **VARIATIONS[name],
    }
    folder = workdir / f"{name}_k{steps}"
    print(f"\n== {folder.name}", flush=True)
    config = load_config(f"{CONFIG}:stage=cd,steps={steps}", overrides)
    if not train(config, folder):
        return None
    config = read_config(folder)
    classifier, reference = load_reference(config, quickstart / "classifier.npz")
    number = config.evaluation.num_images
    (result,) = evaluate_run(
        folder, [sampling_options(config)], classifier, reference, number, seed=1
    )
    changed = ", ".join(f"{k}={v}" for k, v in VARIATIONS[name].items())
    return {
        "variation": name,
        "changes": changed or "nothing",
        "K": str(steps),
        "Fréchet distance": f"{result['frechet_distance']:.4f}",
        "in pixels": f"{result['pixel_frechet_distance']:.4f}",
        "class accuracy": f"{result['class_accuracy']:.1%}",
        "variance ratio": f"{result['variance_ratio']:.3f}",
    }


def keep_row(document: Path, row: Mapping[str, str]) -> None:
    """Put the row into the document's table, in place of an older one of its kind.

    Raises UserError when the document lacks its marks.
    """
    text = document.read_text()
    _, table, _ = split_at_marks(text, BEGIN, END, str(document))
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    rows = [dict(zip(row, _cells(line), strict=True)) for line in lines]
    rows = [old for old in rows if (old["variation"], old["K"]) != _kind(row)]
    order = list(VARIATIONS)
    rows = sorted(
        [*rows, dict(row)],
        key=lambda each: (int(each["K"]), order.index(each["variation"])),
    )
    header = ["| " + " | ".join(row) + " |", "|" + "---|" * len(row)]
    body = ["| " + " | ".join(each.values()) + " |" for each in rows]
    new = "\n".join([*header, *body])
    write_text(document, replace_between(text, BEGIN, END, new, str(document)))
    print(json.dumps(dict(row), ensure_ascii=False))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _kind(row: Mapping[str, str]) -> tuple[str, str]:
    return row["variation"], row["K"]


if __name__ == "__main__":
    sys.exit(main())
