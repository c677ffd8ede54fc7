"""Our train step, and those of other repositories on the same shape, in turns.

  python -m benchmarks.train_step [--method=cd|ct|heun] [--model=unet|uvit]
      [--threads=1] [--peer=NAME=PATH ..] [--peer_python=PYTHON] [--compiled]
      [--rounds=9]

NAME is fastgen or tract (CD), ect (CT) or openai (heun: CD whose hop is Heun's, with
two calls of the teacher); PATH is a clone of its repository, and PYTHON has PyTorch and
what the repository imports. No repository has a U-ViT: --model=uvit --peer=twin is ours
written anew in PyTorch. Every side is a process; in every round each takes two
steps, of which the second counts, so that whatever else the machine does meets all
alike.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.documents import replace_between
from benchmarks.records import write_record
from benchmarks.train_step.text import table
from benchmarks.train_step.work import Work
from benchmarks.train_step.worker import command
from multistep_cm.errors import UserError
from multistep_cm.files import write_text

ROOT = Path(__file__).parents[2]
WARM_UP = 1
TWIN = "twin"
"""The one side in PyTorch that is of this repository."""

PEERS = {
    ("cd", "unet"): ("fastgen", "tract"),
    ("ct", "unet"): ("ect",),
    ("heun", "unet"): ("openai",),
    ("cd", "uvit"): (TWIN,),
}
"""Method and model to the peers that have them."""

Result: TypeAlias = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the numbers; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--method", choices=("cd", "ct", "heun"), default="cd")
    parser.add_argument("--model", choices=("unet", "uvit"), default="unet")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=32, help="of images, in pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--compiled", action="store_true", help="torch.compile peers")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", default="runs/train_step.json")
    parser.add_argument("--results", help="a written output: measure nothing")
    parser.add_argument(
        "--document", help="file with marks that the table goes between"
    )
    args = parser.parse_args(argv)
    work = Work(args.method, args.model, args.batch, args.size, args.threads)
    try:
        if args.results:
            record = json.loads(read_text(args.results))
            show(Work(**record["work"]), record["sides"], args.document)
            return 0
        known = PEERS.get((args.method, args.model), ())
        peers = parse_peers(args.peer, known)
        for name in sorted(set(known) - set(peers)):
            where = "" if name == TWIN else "=PATH"
            print(f"{name} is skipped: ask for it with --peer={name}{where}")
        results = measure(work, peers, args.peer_python, args.compiled, args.rounds)
        record = {"work": dataclasses.asdict(work), "sides": results}
        write_record(Path(args.output), record)
        print(f"wrote {args.output}")
        show(work, results, args.document)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_text(path: str) -> str:
    """UserError when it cannot be read."""
    try:
        return Path(path).read_text()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def show(work: Work, results: Mapping[str, Result], document: str | None) -> None:
    """Print the table, and put it between the marks of a document if there is one."""
    text = table(work, results)
    print(text)
    if document:
        begin, end = (
            f"<!-- {word} train_step {work.method} {work.model} -->"
            for word in ("begin", "end")
        )
        whole = read_text(document)
        write_text(Path(document), replace_between(whole, begin, end, text, document))
        print(f"wrote {document}")


def parse_peers(words: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """`NAME=PATH` to a table; UserError when a name or a folder is not there."""
    peers = {}
    for word in words:
        name, _, path = word.partition("=")
        if name not in known:
            names = " or ".join(known) or "nothing: no peer has this method and model"
            raise UserError(f"--peer={word}: expected NAME=PATH, NAME {names}")
        if name == TWIN and not path:
            peers[name] = ""
            continue
        if not path or not Path(path).is_dir():
            raise UserError(f"--peer={word}: there is no folder {path or '(empty)'}")
        peers[name] = str(Path(path).resolve())
    return peers


def measure(
    work: Work, peers: Mapping[str, str], python: str, compiled: bool, rounds: int
) -> dict[str, Result]:
    """Facts and times of every side, ours first."""
    results: dict[str, Result] = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in ("ours", *peers):
            mine = name == "ours"
            of = dataclasses.replace(work, compiled=compiled and not mine)
            by = sys.executable if mine else python
            words = command(by, name, peers.get(name, ""), of)
            workers[name] = stack.enter_context(worker(words, work.threads))
            results[name] = {**ask(name, workers[name], ""), "steps": []}
        for number in range(WARM_UP + rounds):
            for name, process in workers.items():
                ask(name, process, "step\n")
                taken = ask(name, process, "step\n")
                if number >= WARM_UP:
                    results[name]["steps"].append(taken)
    for result in results.values():
        result.update(summary(work, result))
    return results


def summary(work: Work, result: Mapping[str, Any]) -> Result:
    """Medians over the steps, and what they are against what is known."""
    seconds = [step["cpu_seconds"] for step in result["steps"]]
    cpu = statistics.median(seconds)
    numbers: Result = {
        "cpu_seconds": cpu,
        "cpu_seconds_range": [min(seconds), max(seconds)],
        "wall_seconds": statistics.median(s["wall_seconds"] for s in result["steps"]),
        "images_per_cpu_second": work.batch / cpu,
        "memory_bytes": result["steps"][-1]["memory_bytes"],
    }
    if result.get("flops"):
        numbers["achieved_flops"] = result["flops"] / cpu
    if result.get("flops") and result.get("peak_flops"):
        numbers["share_of_peak"] = result["flops"] / cpu / result["peak_flops"]
    return numbers


@contextlib.contextmanager
def worker(words: Sequence[str], threads: int) -> Iterator[subprocess.Popen[str]]:
    """A running worker, ended with the block."""
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "1",
        "OMP_NUM_THREADS": str(threads),
        # Large pages for all sides: with small ones the kernel's share is noise.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    with subprocess.Popen(
        words,
        cwd=ROOT,
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(name: str, process: subprocess.Popen[str], line: str) -> Result:
    """Say a line and read the answer; UserError when there is none."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line)
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise UserError(f"the side {name} has ended; what it said is above")
    result: Result = json.loads(answer)
    return result
