"""What changes the bits of a run, and by how much: `python -m benchmarks.determinism`.

The digits' teacher for a few steps, in fresh processes: the same run again, and with
one thing changed that is not to change what is learned. Of each the state after the
last step (parameters, averages, Adam's moments) is held against that of the run it
should be, and the difference is measured. Writes the table into docs/reliability.md.
"""

import argparse
import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.documents import replace_between
from benchmarks.faults.truth import state_of
from multistep_cm.checkpoints import Trees
from multistep_cm.errors import UserError
from multistep_cm.files import write_text
from multistep_cm.reporting.metrics import METRICS_FILE, read_jsonl
from multistep_cm.sharding.mesh import make_mesh

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN = "<!-- determinism: python -m benchmarks.determinism -->"
END = "<!-- /determinism -->"

SMALL = (
    "--config=configs/digits.py:stage=teacher",
    "--config.model.channels=(16, 32)",
    "--config.model.blocks=(1, 1)",
    "--config.training.log_every=2",
    "--config.training.batch_size=32",
    "--config.sampling.num_previews=0",
)
"""A UNet with convolutions, attention and label dropout."""


ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


@dataclasses.dataclass(frozen=True)
class Case:
    """A run, and the one whose bits it may have.

    Attributes:
        name: in the table.
        like: name of the run to hold it against; "" for a run that starts a group.
        options: keys of the config with their values, besides `SMALL`.
        devices: simulated, of each process.
        processes: of the run.
        flags: XLA_FLAGS of the run.
        cached: whether the compilation cache of the run before it is read.
    """

    name: str
    like: str = ""
    options: Sequence[str] = ()
    devices: int = 1
    processes: int = 1
    flags: str = ONE_THREAD
    cached: bool = False


ONE = "one device"
EIGHT = "eight devices, mesh.data=8"
CASES = (
    Case(ONE),
    Case("again", ONE),
    Case("program from the compilation cache", ONE, cached=True),
    Case(
        "two steps in one call (training.steps_per_call)",
        ONE,
        ("training.steps_per_call=2",),
    ),
    Case("threads in a convolution", ONE, flags=""),
    Case("rematerialised", ONE, ("model.remat=full",)),
    Case(
        "two parts of a batch (training.accumulation)",
        ONE,
        ("training.accumulation=2",),
    ),
    Case(EIGHT, ONE, devices=8),
    Case("eight devices again", EIGHT, devices=8),
    Case("mesh.fsdp=8", EIGHT, ("mesh.data=1", "mesh.fsdp=8"), 8),
    Case("mesh.tensor=2", EIGHT, ("mesh.data=4", "mesh.tensor=2"), 8),
    Case("two processes of four", EIGHT, devices=4, processes=2),
)


@dataclasses.dataclass(frozen=True)
class End:
    """How a run ended: the state after its last step, and the losses on the way."""

    trees: Trees
    losses: Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of a run from another.

    Attributes:
        same: whether every bit of the state is.
        parameter: the largest of a parameter, in root mean squares of all of them.
        loss: the largest of a loss, relative.
    """

    same: bool
    parameter: float
    loss: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run all cases and write the table; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.determinism",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=20, help="of each run, even")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    args = parser.parse_args(argv)
    try:
        if args.steps < 2 or args.steps % 2:
            raise UserError(f"--steps is {args.steps}, expected an even number above 0")
        with tempfile.TemporaryDirectory() as folder:
            text = table(CASES, run_all(CASES, Path(folder), args.steps), args.steps)
        document = args.document.read_text()
        new = replace_between(document, BEGIN, END, text, args.document.name)
        write_text(args.document, new)
    except (UserError, OSError) as error:
        print(f"determinism: {error}", file=sys.stderr)
        return 2
    print(f"{text}\n\nwrote {args.document}")
    return 0


def run_all(cases: Sequence[Case], folder: Path, steps: int) -> dict[str, Difference]:
    """The difference of every case that is held against another."""
    ends: dict[str, End] = {}
    differences = {}
    for number, case in enumerate(cases):
        print(f"{case.name} ..", flush=True)
        cache = folder / ("cache" if case.cached else f"cache{number}")
        if case.name == ONE:
            cache = folder / "cache"
        ends[case.name] = run(case, folder / str(number), cache, steps)
        if case.like:
            differences[case.name] = compare(ends[case.name], ends[case.like])
    return differences


def run(case: Case, workdir: Path, cache: Path, steps: int) -> End:
    """Train it; UserError with what its processes said when one of them fails."""
    words = [
        *(sys.executable, "-m", "multistep_cm", "train", f"--workdir={workdir}"),
        *(*SMALL, f"--config.training.num_steps={steps}"),
        f"--compilation_cache={cache}",
        *(f"--config.{option}" for option in case.options),
    ]
    variables = {
        **{key: os.environ[key] for key in os.environ if not key.startswith("JAX_")},
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(case.devices),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": case.flags,
    }
    logs = [workdir.with_suffix(f".{i}.log") for i in range(case.processes)]
    port = free_port()
    with contextlib.ExitStack() as stack:
        processes = [
            subprocess.Popen(
                [*words, *others(case.processes, index, port)],
                cwd=ROOT,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=stack.enter_context(log.open("wb")),
                stderr=subprocess.STDOUT,
            )
            for index, log in enumerate(logs)
        ]
        codes = [process.wait() for process in processes]
    if any(codes):
        said = "\n".join(log.read_text(errors="replace")[-1000:] for log in logs)
        raise UserError(f"the run {case.name!r} ended with {codes}:\n{said}")
    _, trees, _ = state_of(workdir, mesh_of_one())
    rows = read_jsonl(workdir / METRICS_FILE)
    return End(trees, {row["step"]: row["loss"] for row in rows if "loss" in row})


def others(number: int, index: int, port: int) -> list[str]:
    """The options by which several processes find each other."""
    if number == 1:
        return []
    return [
        f"--coordinator=localhost:{port}",
        f"--num_processes={number}",
        f"--process_id={index}",
    ]


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port: int = listener.getsockname()[1]
    return port


def mesh_of_one() -> Mesh:
    """To read a checkpoint here, whatever the mesh that wrote it."""
    sizes = {"data": 1, "fsdp": 1, "tensor": 1}
    return make_mesh(sizes, jax.devices()[:1])


def compare(a: End, b: End) -> Difference:
    """Of run a from run b. Raises UserError when they hold other arrays or steps."""
    if str(jax.tree.structure(a.trees)) != str(jax.tree.structure(b.trees)):
        raise UserError("the runs hold other arrays")
    pairs = [*zip(jax.tree.leaves(a.trees), jax.tree.leaves(b.trees), strict=True)]
    same = all(left.tobytes() == right.tobytes() for left, right in pairs)
    left, right = (flat(end.trees["params"]) for end in (a, b))
    unit = np.sqrt(np.mean(right**2))
    common = sorted(a.losses.keys() & b.losses.keys())
    if not common:
        raise UserError("the runs have no step whose loss both tell")
    losses = [abs(a.losses[step] / b.losses[step] - 1) for step in common]
    return Difference(same, float(np.max(np.abs(left - right)) / unit), max(losses))


def flat(tree: object) -> np.ndarray:
    """All numbers of a tree, in float64."""
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def table(
    cases: Sequence[Case], differences: Mapping[str, Difference], steps: int
) -> str:
    """A row for every case that is held against another."""
    lines = [
        "| run | held against | same bits | largest difference of a parameter "
        "| of a loss |",
        "|---|---|---|---|---|",
    ]
    for case in cases:
        if not case.like:
            continue
        found = differences[case.name]
        parameter = "0" if found.same else f"{found.parameter:.1e}"
        loss = "0" if found.same else f"{found.loss:.1e}"
        said = "yes" if found.same else "no"
        cells = (case.name, case.like, said, parameter, loss)
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"{steps} steps, CPU, jax {jax.__version__}. Differences of parameters are in "
        "root mean squares of all parameters, those of losses relative.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
