"""The train loop: the only room with clocks, signals and files.

Each round saves first, then takes data, then steps, so that what a checkpoint holds is
exactly the state before the next batch.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm.checkpoints import Checkpoints
from multistep_cm.data.pipeline import DataIterator
from multistep_cm.errors import UserError
from multistep_cm.reporting.metrics import Writer, open_writer
from multistep_cm.reporting.progress import Progress, progress
from multistep_cm.sharding.distributed import is_main_process, say
from multistep_cm.sharding.stopping import Stopping
from multistep_cm.training import setup
from multistep_cm.training.late_metrics import LateMetrics
from multistep_cm.training.preview import Preview
from multistep_cm.training.speed import make_speed
from multistep_cm.training.state import TrainState
from multistep_cm.training.watchdog import Watchdog

MAX_IN_FLIGHT = 2
"""Calls that the host may dispatch ahead of the device."""


STOPPED_EARLY = (
    "stopped by SIGTERM before a step was made: there is nothing to save; the same "
    "command continues"
)


class TrainingDivergedError(UserError):
    """Loss or gradient was not finite."""


def train(config: ConfigDict, workdir: Path, programs: Path | None = None) -> bool:
    """Train what the config says, going on from the newest checkpoint in `workdir`.

    Returns whether the run is finished: False means that SIGTERM came, the state was
    saved and the same command continues. Before the first step there is nothing to
    save: then the run ends at once, even while it compiles. `programs` is a folder of
    programs that were traced before (`tracing.py`).

    Raises UserError before any compilation for what can be known to be wrong, and
    TrainingDivergedError when loss or gradient is not finite.
    """
    with Stopping(STOPPED_EARLY, status=0) as stopping:
        return _train(config, workdir, stopping.requested, programs)
    return False


def _train(
    config: ConfigDict,
    workdir: Path,
    stop_requested: Callable[[], bool],
    programs: Path | None,
) -> bool:
    mesh = setup.check_run(config, workdir)
    with Checkpoints(workdir, config.checkpoint.keep) as checkpoints:
        teacher = setup.load_teacher(config, mesh, programs)
        like = setup.abstract_state(config, mesh, programs)
        restored = setup.restore_state(checkpoints, config, mesh, like)
        data = setup.open_data(config, mesh)
        if restored is None:
            state = setup.init_state(config, mesh, teacher, programs, like)
        else:
            state, data_state = restored
            data.restore(data_state)
            say(f"resumed {workdir} at step {int(state.step)}")
        start = int(state.step)
        setup.check_start(config, start, int(state.skipped))
        frozen = setup.freeze(config, mesh, teacher)
        setup.describe_network(state.params, workdir)
        # From step 0 too: a run that ended before its first save has left rows.
        writer = open_writer(workdir, start, is_main_process())
        build = functools.partial(
            setup.build_step, config, mesh, frozen, programs, like
        )
        run = Run(
            config, mesh, workdir, checkpoints, data, writer, stop_requested, build
        )
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
        workdir: Path,
        checkpoints: Checkpoints,
        data: DataIterator,
        writer: Writer,
        stop_requested: Callable[[], bool],
        build: Callable[[], jax.stages.Compiled],
    ) -> None:
        self.config = config
        self.workdir = workdir
        self.checkpoints = checkpoints
        self.data = data
        self.stop_requested = stop_requested
        self.build = build
        speed = make_speed(config, mesh) if is_main_process() else None
        self.metrics = LateMetrics(
            config, writer, speed, lambda: data.num_bad, self._diverged
        )

    def steps(
        self,
        state: TrainState,
        start: int,
        frozen: dict[str, Any],
        preview: Preview,
    ) -> bool:
        """Run the loop; whether the last step was reached."""
        training, last = self.config.training, self.config.training.num_steps
        if start >= last:
            say(f"nothing to train: step {start} of {last} is done")
            return True
        say("compiling the train step ..")
        compiled = self.build()
        step = start
        watchdog = Watchdog(training.stall_timeout, self.workdir, jax.process_index())
        shown = is_main_process()
        bar_of = progress(self.config.method, last, done=start, enabled=shown)
        with watchdog, bar_of as bar:
            while True:
                watchdog.beat(f"at step {step}")
                stop = step == last or self.stop_requested()
                if stop or step % self.config.checkpoint.every_steps == 0:
                    self._save(step, state, bar)
                if stop:
                    break
                self.checkpoints.check()
                # One call runs and one waits: enough to keep the device busy.
                self.metrics.wait_for_room(MAX_IN_FLIGHT)
                batch = next(self.data)
                state, metrics = compiled(state, batch, frozen)
                step += training.steps_per_call
                self.metrics.add(step, metrics)
                bar.advance(
                    training.steps_per_call,
                    training.steps_per_call * training.batch_size,
                )
                if step % training.log_every == 0:
                    self.metrics.fetch(step - training.log_every, bar)
                if preview.is_due(step):
                    self.metrics.fetch(step, bar)  # no picture of a state gone wrong
                    with watchdog.paused():
                        preview.compile()
                    preview.draw(step, state)
            self.checkpoints.wait()
        if step < last:
            say(f"stopped by SIGTERM at step {step}: saved; the same command continues")
            return False
        return True

    def _save(self, step: int, state: TrainState, bar: Progress) -> None:
        # Everything up to here must be known to be finite before it is kept.
        self.metrics.fetch(step, bar)
        trees, config = setup.split_state(state), self.config.to_dict()
        position = setup.position(state, self.data.state())
        try:
            self.checkpoints.save(step, trees, position, config)
        except FloatingPointError as error:
            raise self._diverged(f"the state ({error})", step) from error
        bar.show({"checkpoint": step})

    def _diverged(
        self, what: str, step: int, skipped: int | None = None
    ) -> TrainingDivergedError:
        """`skipped` steps, with this one, are more than may be; None: none may be."""
        self.checkpoints.wait()
        training, count, remedy = self.config.training, "", ""
        if skipped is not None:
            count = (
                f": {skipped} steps of the run are skipped, more than "
                f"training.max_skipped_steps = {training.max_skipped_steps} allows"
            )
            remedy = ", or allow more"
        elif training.on_nan == "stop":
            remedy = ", or go on with training.on_nan=skip"
        return TrainingDivergedError(
            f"{what} is not finite at step {step}{count}; the last good checkpoint is "
            f"of step {self.checkpoints.latest_step()} in "
            f"{self.checkpoints.directory}: begin anew with a lower "
            f"training.learning_rate or more training.warmup_steps{remedy}"
        )
