"""One side in a process of its own: `python -m benchmarks.train_step.worker`.

Says its facts in a line of JSON, then takes a step for every line that it reads and
says what it took. Whatever else is printed goes to stderr.
"""

import argparse
import dataclasses
import importlib
import json
import os
import platform
import resource
import sys
import time
from typing import TextIO

from benchmarks.train_step.work import Maker, Side, Work

MAKERS = {
    "ours": "benchmarks.train_step.ours",
    "fastgen": "benchmarks.peers.fastgen",
    "tract": "benchmarks.peers.tract",
    "ect": "benchmarks.peers.ect",
    "openai": "benchmarks.peers.openai",
    "twin": "benchmarks.peers.twin",
}
"""Name of a side to the module with its `make_side`."""


def main() -> int:
    """Build the side of the command line and serve until the input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step.worker")
    parser.add_argument("--side", required=True, choices=MAKERS)
    parser.add_argument("--path", default="")
    parser.add_argument("--work", required=True, help="fields of Work as JSON")
    args = parser.parse_args()
    work = Work(**json.loads(args.work))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    allowed = sorted(os.sched_getaffinity(0))
    # Before any thread exists: pools are made for the processors that may be used.
    os.sched_setaffinity(0, allowed[-work.threads :])
    make_side: Maker = importlib.import_module(MAKERS[args.side]).make_side
    serve(make_side(work, args.path), answers)
    return 0


def serve(side: Side, answers: TextIO) -> None:
    """Facts, then one answer a line of the input."""
    facts = {"parameters": side.parameters, "python": platform.python_version()}
    print(json.dumps({**facts, **side.facts}), file=answers)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        side.step()
        taken = {
            "cpu_seconds": time.process_time() - cpu,
            "wall_seconds": time.perf_counter() - wall,
            # In KiB on Linux.
            "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(taken), file=answers)


def command(python: str, name: str, path: str, work: Work) -> list[str]:
    """The words that start a worker."""
    fields = json.dumps(dataclasses.asdict(work))
    module = "benchmarks.train_step.worker"
    options = [f"--side={name}", f"--path={path}", f"--work={fields}"]
    return [python, "-m", module, *options]


if __name__ == "__main__":
    sys.exit(main())
