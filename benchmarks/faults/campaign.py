"""One folder of results: which trials are there, and making those that are not."""

import dataclasses
import functools
import itertools
import json
import math
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults import commands, kills, pairs, places, records
from benchmarks.faults.forks import Server
from benchmarks.faults.layout import (
    GOOD,
    KINDS,
    LAST,
    PAIR,
    ROOT,
    TEACHER,
    VARIANTS,
    Record,
)
from benchmarks.faults.processes import PATIENCE, environment, run_to_end
from benchmarks.faults.truth import Truth, make_truth
from multistep_cm.config import default_config
from multistep_cm.data.sources import open_source
from multistep_cm.errors import UserError
from multistep_cm.provenance import git_commit

WIDE = {
    "model.channels": (128,),
    "training.num_steps": 6,
    "checkpoint.every_steps": 2,
    "checkpoint.keep": 3,
    "sampling.num_previews": 0,
}
"""Of the runs whose checkpoints are damaged: leaves large enough to be cut."""

PRISTINE = {"one": (1, 1, 1), "sharded": (1, 8, 8), "processes": (2, 8, 8)}
"""Name to processes, devices in all, and `mesh.fsdp` of a run to be damaged."""


class Campaign:
    """The trials of one seed; everything is made and kept in `folder`."""

    def __init__(self, folder: Path, seed: int, last: int = LAST) -> None:
        """Open it, made if absent; `last` is the number of steps of each run."""
        self.folder = folder
        self.seed = seed
        self.last = last
        self.path = folder / "trials.jsonl"
        self.data = folder / "data"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        except OSError as error:
            raise UserError(f"--output: {folder}: {error.strerror}") from error
        config = default_config().data
        config.directory = str(self.data)
        open_source(config, config.train_split)  # made once, where all runs read it

    def records(self) -> list[Record]:
        """All trials so far, of this seed and others."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def done(self, kind: str) -> list[Record]:
        """The trials of a kind, of this seed."""
        return [
            record
            for record in self.records()
            if (record["kind"], record["seed"]) == (kind, self.seed)
        ]

    def run(self, kind: str, trials: int) -> None:
        """Make the trials of a kind that are missing, a line in the results for each.

        `trials` is the number of kills, of which `KINDS` says what part this kind gets.
        """
        wanted = math.ceil(trials * KINDS[kind][1])
        make = getattr(self, f"_{kind}")
        missing = wanted - len(self.done(kind))
        if missing <= 0:
            return
        for record in make(missing):
            self._keep(kind, record)
            number = len(self.done(kind))
            print(f"{kind} {number} of {wanted}: {describe(record)}", flush=True)

    def _keep(self, kind: str, record: Record) -> None:
        commit = git_commit() or "unknown"
        facts = {"kind": kind, "seed": self.seed, "commit": commit}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**facts, **record}) + "\n")

    def _keep_folder(self, folder: Path, name: str) -> None:
        """What a trial left that was not survived, to be looked at."""
        kept = self.folder / f"failed-{name}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept)

    def _free(self, kind: str) -> Iterator[int]:
        """Numbers from 0 on that no trial of the kind has: those taken out, then new.

        Who has mended what a trial showed takes its lines out of the results: the same
        trial is made again.
        """
        taken = {record["number"] for record in self.done(kind)}
        return (number for number in itertools.count() if number not in taken)

    @functools.cached_property
    def truths(self) -> dict[str, Truth]:
        """The undisturbed runs, made anew for this process's code."""
        return {
            variant.name: make_truth(
                variant, self.folder / "truth" / variant.name, self.data, self.last
            )
            for variant in VARIANTS
        }

    @functools.cached_property
    def pair(self) -> Truth:
        """The undisturbed run of two processes, which others of any mesh resemble."""
        return make_truth(PAIR, self.folder / "truth" / "pair", self.data, self.last, 2)

    @functools.cached_property
    def server(self) -> Server:
        """What forks the processes that are killed."""
        return Server(environment(1))

    def close(self) -> None:
        """End what runs beside this process."""
        if "server" in vars(self):
            self.server.close()

    def _chains(self, kind: str, missing: int) -> Iterator[Record]:
        """Kills: several in each run, of each variant in turn."""
        for number in self._free(kind):
            if missing <= 0:
                break
            truth = [*self.truths.values()][number % len(VARIANTS)]
            folder = self.folder / "chain"
            seed = [self.seed, [*KINDS].index(kind), number]
            records = kills.run_chain(
                folder, truth, self.data, seed, kind, server=self.server
            )
            if any(record["outcome"] not in GOOD for record in records):
                self._keep_folder(folder, f"{kind}-{number}")
            for record in records:
                yield record | {"number": number}
            missing -= len(records)

    def _kill(self, missing: int) -> Iterator[Record]:
        yield from self._chains("kill", missing)

    def _term(self, missing: int) -> Iterator[Record]:
        yield from self._chains("term", missing)

    def _single(
        self, kind: str, missing: int, make: Callable[[Path, list[int]], Record]
    ) -> Iterator[Record]:
        """Trials of one record each, in a folder that only a failure leaves behind."""
        for number in itertools.islice(self._free(kind), missing):
            folder = self.folder / kind
            shutil.rmtree(folder, ignore_errors=True)
            record = make(folder, [self.seed, [*KINDS].index(kind), number])
            if record["outcome"] not in GOOD and folder.exists():
                self._keep_folder(folder, f"{kind}-{number}")
            yield record | {"number": number}

    def _kill_command(self, missing: int) -> Iterator[Record]:
        truth = self.truths[TEACHER.name]
        yield from self._single(
            "kill_command", missing, lambda f, s: commands.kill_command(f, truth, s)
        )

    def _disk_full(self, missing: int) -> Iterator[Record]:
        if not places.may_mount(self.folder):
            print("disk_full: not tried, this user may not mount a tmpfs")
            return
        truth = self.truths[TEACHER.name]
        yield from self._single(
            "disk_full",
            missing,
            lambda f, s: places.fill_disk(f, truth, self.data, s),
        )

    def _read_only(self, missing: int) -> Iterator[Record]:
        truth = self.truths[TEACHER.name]
        yield from self._single(
            "read_only",
            missing,
            lambda f, s: places.lock_folder(f, truth, self.data, s),
        )

    def _clock(self, missing: int) -> Iterator[Record]:
        truth = self.truths[TEACHER.name]
        yield from self._single(
            "clock", missing, lambda f, s: places.move_clock(f, truth, self.data, s)
        )

    def _record(self, missing: int) -> Iterator[Record]:
        yield from self._single(
            "record", missing, lambda f, s: records.spoil_records(f, s)
        )

    def _worker_killed(self, missing: int) -> Iterator[Record]:
        yield from self._workers("worker_killed", missing)

    def _worker_stopped(self, missing: int) -> Iterator[Record]:
        yield from self._workers("worker_stopped", missing)

    def _workers(self, kind: str, missing: int) -> Iterator[Record]:
        truth, data = self.pair, self.data
        yield from self._single(
            kind, missing, lambda f, s: pairs.disturb(f, truth, data, s, kind)
        )

    def _mesh(self, missing: int) -> Iterator[Record]:
        truth, data = self.pair, self.data
        yield from self._single(
            "mesh", missing, lambda f, s: pairs.change_mesh(f, truth, data, s)
        )

    def _damage(self, missing: int) -> Iterator[Record]:
        """In a process apart; when that dies, the trial is recorded as an error."""
        self._make_pristine()
        first = max((record["number"] for record in self.done("damage")), default=-1)
        first += 1
        last = first + missing
        while first < last:
            module = [sys.executable, "-m", "benchmarks.faults.corruption"]
            numbers = [str(self.seed), str(first), str(last)]
            with subprocess.Popen(
                [*module, str(self.folder), *numbers],
                cwd=ROOT,
                env=environment(8),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ) as process:
                timer = threading.Timer(PATIENCE, process.kill)
                for line in process.stdout or ():
                    timer.cancel()
                    if line.startswith("{"):
                        yield json.loads(line)
                        first += 1
                    timer = threading.Timer(PATIENCE, process.kill)
                    timer.start()
                timer.cancel()
            if first < last:
                note = f"the process ended with {process.returncode}"
                yield {"number": first, "outcome": "error", "note": note}
                first += 1

    def _make_pristine(self) -> None:
        """The runs whose checkpoints are damaged, each of a process or two."""
        for name, (number, devices, fsdp) in PRISTINE.items():
            workdir = self.folder / "pristine" / name
            if (workdir / "checkpoints" / "6").is_dir():
                continue
            variant = dataclasses.replace(TEACHER, values=WIDE)
            flags = variant.flags(self.data, mesh__fsdp=fsdp)
            command = ["train", f"--workdir={workdir}", *flags]
            failed = run_to_end(self.folder / "logs" / name, command, number, devices)
            if failed:
                raise UserError(f"the run to be damaged failed:\n{failed}")


def describe(record: Record) -> str:
    """A trial in a line."""
    keys = ("aim", "phase", "background", "way", "repeated", "outcome", "note")
    said = [str(record[key]) for key in keys if record.get(key) not in (None, "")]
    return ", ".join(said).replace("\n", " ")[:160]
