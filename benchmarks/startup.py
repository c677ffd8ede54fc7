"""How long it takes until something happens: `python -m benchmarks.startup`.

Fresh processes, in turns: Python alone, the import of the package and of all that
training needs, `--help`; then a training of one step with an empty compilation cache
(cold), and again with what the first left there (warm).
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import jax

from benchmarks.records import write_record
from multistep_cm.errors import UserError

ROOT = Path(__file__).parents[1]
COMMAND = ("-m", "multistep_cm")
PROCESSES: Mapping[str, Sequence[str]] = {
    "python alone": ("-c", "pass"),
    "import jax": ("-c", "import jax"),
    "import multistep_cm": ("-c", "import multistep_cm"),
    "import all that train needs": ("-c", "import multistep_cm.training.loop"),
    "--help": (*COMMAND, "--help"),
    "train --help": (*COMMAND, "train", "--help"),
}
"""What is measured to words after `python`."""

CONFIG = "configs/digits.py:stage=teacher"
ONE_STEP = ("--config.training.num_steps=1", "--config.sampling.num_previews=0")

Seconds: TypeAlias = dict[str, list[float]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the numbers; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="of the short processes")
    parser.add_argument("--starts", type=int, default=3, help="cold and warm, of each")
    parser.add_argument("--config", default=CONFIG, help="of the run that is started")
    parser.add_argument("--output", default="runs/startup.json")
    args = parser.parse_args(argv)
    try:
        seconds = measure_processes(args.rounds)
        seconds |= measure_starts(args.config, args.starts)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(seconds))
    versions = {"python": platform.python_version(), "jax": jax.__version__}
    record = {"config": args.config, "versions": versions, "seconds": seconds}
    write_record(Path(args.output), record)
    print(f"wrote {args.output}")
    return 0


def measure_processes(rounds: int, run: Callable[..., float] | None = None) -> Seconds:
    """Seconds of every short process, round after round."""
    run = run or seconds_of
    seconds: Seconds = {name: [] for name in PROCESSES}
    for _ in range(rounds):
        for name, words in PROCESSES.items():
            seconds[name].append(run(words))
    return seconds


def measure_starts(
    config: str, starts: int, run: Callable[..., float] | None = None
) -> Seconds:
    """Seconds of runs of one step: cold, then warm, from the same empty folder."""
    run = run or seconds_of
    seconds: Seconds = {"cold start": [], "warm start": []}
    for _ in range(starts):
        with tempfile.TemporaryDirectory() as folder:
            for name in seconds:
                words = (
                    *COMMAND,
                    "train",
                    f"--config={config}",
                    f"--workdir={folder}/{name.split()[0]}",
                    f"--compilation_cache={folder}/cache",
                    *ONE_STEP,
                )
                seconds[name].append(run(words))
    return seconds


def seconds_of(words: Sequence[str]) -> float:
    """Wall clock of one process of this Python; UserError when it fails."""
    kept = {key: os.environ[key] for key in os.environ if not key.startswith("JAX_")}
    kept |= {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "")}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise UserError(f"python {' '.join(words)} failed: {done.stderr[-2000:]}")
    return seconds


def table(seconds: Seconds) -> str:
    """A row for each, and what a warm cache brings."""
    rows = [
        f"| {name} | {statistics.median(taken):.2f} | {min(taken):.2f} .. "
        f"{max(taken):.2f} | {len(taken)} |"
        for name, taken in seconds.items()
    ]
    cold, warm = (statistics.median(seconds[f"{k} start"]) for k in ("cold", "warm"))
    return "\n".join(
        [
            "| process | seconds, median | least .. most | times |",
            "|---|---|---|---|",
            *rows,
            "",
            f"A warm start takes 1/{cold / warm:.1f} of a cold one's time "
            f"({platform.machine()}, {os.cpu_count()} cores).",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
