"""The train loop: the only room with clocks, signals and files.

Each round saves first, then takes data, then steps, so that what a checkpoint holds is
exactly the state before the next batch. Metrics are fetched one interval late, so the
host never waits for the device except to save.
"""

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm.checkpoints import Checkpoints
from multistep_cm.data.pipeline import DataIterator
from multistep_cm.errors import UserError
from multistep_cm.reporting.metrics import Writer, open_writer
from multistep_cm.reporting.progress import Progress, progress
from multistep_cm.sharding.distributed import is_main_process, say, stop_requests
from multistep_cm.training import setup
from multistep_cm.training.metrics import mean_metrics
from multistep_cm.training.preview import Preview
from multistep_cm.training.speed import make_speed
from multistep_cm.training.state import TrainState
from multistep_cm.training.step import StepMetrics

MAX_IN_FLIGHT = 2
"""Calls that the host may dispatch ahead of the device."""


class TrainingDivergedError(UserError):
    """Loss or gradient was not finite."""


def train(config: ConfigDict, workdir: Path) -> bool:
    """Train what the config says, going on from the newest checkpoint in `workdir`.

    Returns whether the run is finished: False means that SIGTERM came, the state was
    saved and the same command continues.

    Raises UserError before any compilation for what can be known to be wrong, and
    TrainingDivergedError when loss or gradient is not finite.
    """
    with stop_requests() as stop_requested:
        mesh = setup.check_run(config, workdir)
        with Checkpoints(workdir, config.checkpoint.keep) as checkpoints:
            teacher = setup.load_teacher(config, mesh)
            restored = setup.restore_state(checkpoints, config, mesh)
            data = setup.open_data(config, mesh)
            if restored is None:
                state = setup.init_state(config, mesh, teacher)
            else:
                state, data_state = restored
                data.restore(data_state)
                say(f"resumed {workdir} at step {int(state.step)}")
            start = int(state.step)
            setup.check_start(config, start)
            frozen = setup.freeze(config, mesh, teacher)
            setup.describe_network(state.params, workdir)
            resumed = start if restored else None
            writer = open_writer(workdir, resumed, is_main_process())
            run = Run(config, mesh, checkpoints, data, writer, stop_requested)
            preview = Preview(config, workdir, mesh, writer)
            try:
                return run.steps(state, start, frozen, preview)
            finally:
                data.close()
                writer.close()


class Run:
    """One pass through the loop, from `start` to the last step or a stop request."""

    def __init__(
        self,
        config: ConfigDict,
        mesh: Mesh,
        checkpoints: Checkpoints,
        data: DataIterator,
        writer: Writer,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.config = config
        self.mesh = mesh
        self.checkpoints = checkpoints
        self.data = data
        self.writer = writer
        self.stop_requested = stop_requested
        # Calls whose metrics the host has not looked at: (last step, metrics).
        self.pending: collections.deque[tuple[int, StepMetrics]] = collections.deque()
        self.speed = make_speed(config, mesh) if is_main_process() else None

    def steps(
        self,
        state: TrainState,
        start: int,
        frozen: dict[str, Any],
        preview: Preview,
    ) -> bool:
        """Run the loop; whether the last step was reached."""
        training = self.config.training
        every, last = self.config.checkpoint.every_steps, training.num_steps
        if start >= last:
            say(f"nothing to train: step {start} of {last} is done")
            return True
        say("compiling the train step ..")
        compiled = setup.build_step(self.config, self.mesh, frozen)
        step = start
        with progress(
            self.config.method, last, done=start, enabled=is_main_process()
        ) as bar:
            while True:
                stop = step == last or self.stop_requested()
                if stop or step % every == 0:
                    self._save(step, state, bar)
                if stop:
                    break
                if len(self.pending) >= MAX_IN_FLIGHT:
                    # One call runs and one waits: enough to keep the device busy.
                    jax.block_until_ready(self.pending[-MAX_IN_FLIGHT])
                batch = next(self.data)
                state, metrics = compiled(state, batch, frozen)
                step += training.steps_per_call
                self.pending.append((step, metrics))
                bar.advance(
                    training.steps_per_call,
                    training.steps_per_call * training.batch_size,
                )
                if step % training.log_every == 0:
                    self._fetch(step - training.log_every, bar)
                if preview.is_due(step):
                    self._fetch(step, bar)  # no picture of a state gone wrong
                    preview.draw(step, state)
        self.checkpoints.wait()
        if step < last:
            say(f"stopped by SIGTERM at step {step}: saved; the same command continues")
            return False
        return True

    def _save(self, step: int, state: TrainState, bar: Progress) -> None:
        # Everything up to here must be known to be finite before it is kept.
        self._fetch(step, bar)
        trees, config = setup.split_state(state), self.config.to_dict()
        try:
            self.checkpoints.save(step, trees, self.data.state(), config)
        except FloatingPointError as error:
            raise self._diverged(f"the state ({error})", step) from error
        bar.show({"checkpoint": step})

    def _fetch(self, up_to: int, bar: Progress) -> None:
        """Look at the metrics of the calls up to this step, check and write them."""
        rows: list[StepMetrics] = []
        while self.pending and self.pending[0][0] <= up_to:
            step, metrics = self.pending.popleft()
            metrics = jax.device_get(metrics)
            self._check_finite(step, metrics)
            rows.append(metrics)
            is_last = not self.pending or self.pending[0][0] > up_to
            if is_last or step % self.config.training.log_every == 0:
                self._write(step, rows, bar)
                rows = []

    def _write(self, step: int, rows: list[StepMetrics], bar: Progress) -> None:
        """One line of metrics for the calls since the last one."""
        values = mean_metrics(rows)
        if bar.images_per_second:
            values["images_per_second"] = bar.images_per_second
            if self.speed:
                values["mfu"] = self.speed.mfu(bar.images_per_second)
        if self.config.data.bad_record_fraction:
            values["bad_records"] = self.data.num_bad
        self.writer.scalars(step, values)
        bar.show({name: values[name] for name in ("loss", "mfu") if name in values})

    def _check_finite(self, step: int, metrics: StepMetrics) -> None:
        per_call = self.config.training.steps_per_call
        sound = np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"])
        if np.all(sound):
            return
        first = step - per_call + int(np.argmin(np.atleast_1d(sound))) + 1
        raise self._diverged("loss or gradient norm", first)

    def _diverged(self, what: str, step: int) -> TrainingDivergedError:
        self.checkpoints.wait()
        return TrainingDivergedError(
            f"{what} is not finite at step {step}; the last good checkpoint is of step "
            f"{self.checkpoints.latest_step()} in {self.checkpoints.directory}: lower "
            "training.learning_rate or raise training.warmup_steps"
        )
