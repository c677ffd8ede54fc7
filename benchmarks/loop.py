"""What the train loop costs beside its steps: `python -m benchmarks.loop`.

The same compiled step in turns: alone, on one batch that stays on the device; in the
loop of `multistep-cm train` with data, metrics, TensorBoard and progress line; there
with one checkpoint too. What a checkpoint costs does not depend on how many steps lie
between two, so its seconds are counted apart and held against the config's own
`checkpoint.every_steps`. On a CPU the host's work takes the step's own cores, so that
CPU-seconds count all of it, hidden or not; but a step's own vary by more than the loop
adds. So the CPU time of all Python threads outside of the calls of the step is counted
too, in one and the same turn: data, metrics, TensorBoard, progress line and watchdog.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
from ml_collections import ConfigDict

from benchmarks.records import write_record
from multistep_cm.config import load_config
from multistep_cm.errors import UserError
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import loop, setup

SPECIFICATION = "configs/digits.py:stage=teacher"
UVIT = {
    "model.name": "uvit",
    "model.channels": "(64, 256)",
    "model.blocks": "(1, 4)",
    "model.attention_resolutions": "(4,)",
    "training.batch_size": "128",
    "sampling.num_previews": "0",
}
"""A U-ViT: matrix products, which a CPU does at full speed, so that host work shows."""

THREADS = Path("/proc/self/task")
WARM_UP = 4
ALONE, LOOP, SAVING = "alone", "in the loop", "in the loop, with a checkpoint"
Seconds: TypeAlias = dict[str, list[float]]


class Taken(NamedTuple):
    """Seconds of a step, or up to a moment."""

    cpu: float
    wall: float
    host: float
    """CPU time of Python's threads outside of the calls of the step."""


class Timed:
    """A compiled step that remembers when it was called, by three clocks."""

    def __init__(self, compiled: Callable[..., Any]) -> None:
        self._compiled = compiled
        self._inside = 0.0
        self._threads: dict[int, float] = {}
        self.calls: list[Taken] = []

    def __call__(self, *arguments: Any) -> Any:
        """The step."""
        self._threads |= python_seconds()  # of one that has ended, what it had
        host = sum(self._threads.values()) - self._inside
        self.calls.append(Taken(time.process_time(), time.perf_counter(), host))
        begin = time.thread_time()
        result = self._compiled(*arguments)
        self._inside += time.thread_time() - begin
        return result

    def seconds_per_step(self) -> Taken:
        """What passed between calls, the first ones not counted."""
        first, last = self.calls[WARM_UP], self.calls[-1]
        number = counted(len(self.calls))
        return Taken(*((b - a) / number for a, b in zip(first, last, strict=True)))


def python_seconds() -> dict[int, float]:
    """CPU time of every thread that Python knows and that lives."""
    seconds = {}
    for thread in threading.enumerate():
        if thread.native_id is not None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                path = THREADS / str(thread.native_id) / "schedstat"
                seconds[thread.native_id] = int(path.read_text().split()[0]) / 1e9
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the numbers; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default=SPECIFICATION)
    parser.add_argument("--steps", type=int, default=100, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="runs/loop.json")
    args = parser.parse_args(argv)
    try:
        if not THREADS.exists():
            raise UserError(f"{THREADS}, the time of threads, is not here: use Linux")
        if args.steps < 2 * WARM_UP:
            raise UserError(f"--steps is {args.steps}, expected at least {2 * WARM_UP}")
        config = load_config(args.config, {**UVIT, **turn_settings(args.steps)})
        taken = measure(config, args.rounds)
        cadence = config.checkpoint.every_steps
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(taken, args.steps, cadence))
    device = jax.devices()[0].device_kind
    record = {"device": device, "cores": os.cpu_count(), "jax": jax.__version__}
    record |= {"steps": args.steps, "checkpoint_every_steps": cadence}
    for part in Taken._fields:
        record[f"{part}_seconds"] = seconds_of(taken, part)
    write_record(Path(args.output), record)
    print(f"wrote {args.output}")
    return 0


def turn_settings(steps: int) -> dict[str, str]:
    """So many steps, and metrics every ten of them."""
    return {"training.num_steps": str(steps), "training.log_every": "10"}


def counted(steps: int) -> int:
    """The steps of a turn whose time counts."""
    return steps - 1 - WARM_UP


def measure(config: ConfigDict, rounds: int) -> dict[str, list[Taken]]:
    """What a step of every turn took, alone and in the loop."""
    mesh = make_mesh(config.mesh)
    frozen = setup.freeze(config, mesh, None)
    compiled = setup.build_step(config, mesh, frozen)
    turns = {ALONE: alone, LOOP: in_the_loop, SAVING: with_a_checkpoint}
    taken: dict[str, list[Taken]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            timed = Timed(compiled)
            turn(config, timed)
            taken[name].append(timed.seconds_per_step())
    return taken


def seconds_of(taken: dict[str, list[Taken]], part: str) -> Seconds:
    """One of the clocks, of every turn."""
    return {name: [getattr(t, part) for t in turns] for name, turns in taken.items()}


def alone(config: ConfigDict, step: Timed) -> None:
    """Steps on one batch, as far ahead of the device as the loop goes."""
    mesh = make_mesh(config.mesh)
    frozen = setup.freeze(config, mesh, None)
    state = setup.init_state(config, mesh, None)
    data = setup.open_data(config, mesh)
    batch = next(data)
    data.close()
    pending: list[Any] = []
    for _ in range(config.training.num_steps):
        if len(pending) >= loop.MAX_IN_FLIGHT:
            jax.block_until_ready(pending[-loop.MAX_IN_FLIGHT])
        state, metrics = step(state, batch, frozen)
        pending.append(metrics)
    jax.block_until_ready(state)


def in_the_loop(config: ConfigDict, step: Timed) -> None:
    """A whole run that saves only before and after the steps that count."""
    run(config, config.training.num_steps, step)


def with_a_checkpoint(config: ConfigDict, step: Timed) -> None:
    """The same, and it saves in the middle too."""
    run(config, (config.training.num_steps + 1) // 2, step)


def run(config: ConfigDict, every_steps: int, step: Timed) -> None:
    """A whole run in a new folder, with this step in the place of its own."""
    config = config.copy_and_resolve_references()
    config.checkpoint.every_steps = every_steps
    own = setup.build_step
    setup.build_step = lambda *_: step  # type: ignore[assignment, return-value]
    try:
        with tempfile.TemporaryDirectory() as folder:
            loop.train(config, Path(folder, "run"))
    finally:
        setup.build_step = own


def table(taken: dict[str, list[Taken]], steps: int, cadence: int) -> str:
    """A row for each, what the loop adds, and what a checkpoint does every `cadence`
    steps; a turn had so many steps."""
    cpu, wall, host = (seconds_of(taken, part) for part in Taken._fields)
    lines = [
        "| steps | CPU-ms a step (least .. most) | wall ms a step |",
        "|---|---|---|",
    ]
    for name, seconds in cpu.items():
        middle = statistics.median(seconds) * 1e3
        least, most = min(seconds) * 1e3, max(seconds) * 1e3
        clock = statistics.median(wall[name]) * 1e3
        lines.append(
            f"| {name} | {middle:.1f} ({least:.1f} .. {most:.1f}) | {clock:.1f} |"
        )
    by_cpu, by_wall = (
        [b / a - 1 for a, b in zip(seconds[ALONE], seconds[LOOP], strict=True)]
        for seconds in (cpu, wall)
    )
    save_cpu, save_wall = (
        [
            (b - a) * counted(steps)
            for a, b in zip(seconds[LOOP], seconds[SAVING], strict=True)
        ]
        for seconds in (cpu, wall)
    )
    outside = [b / a for a, b in zip(cpu[ALONE], host[LOOP], strict=True)]
    share = statistics.median(save_cpu) / (cadence * statistics.median(cpu[ALONE]))
    lines += [
        "",
        "Beside a step the host works "
        f"{statistics.median(host[LOOP]) * 1e3:.2f} CPU-ms, "
        f"{statistics.median(outside):.2%} of it, the median of {len(outside)} turns "
        f"({min(outside):.2%} .. {max(outside):.2%}).",
        f"The loop adds {statistics.median(by_cpu):.1%} of CPU time, the median of "
        f"{len(by_cpu)} turns ({min(by_cpu):.1%} .. {max(by_cpu):.1%}), and "
        f"{statistics.median(by_wall):.1%} of wall clock.",
        f"A checkpoint adds {statistics.median(save_cpu):.1f} CPU-seconds "
        f"({min(save_cpu):.1f} .. {max(save_cpu):.1f}) and "
        f"{statistics.median(save_wall):.1f} s of wall clock: with one every {cadence} "
        f"steps, as the config has it, {share:.1%} of CPU time more.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
