"""The metrics of steps that the device may not have finished: looked at late.

They are fetched one interval late, so that the host never waits for the device except
to save. What is not finite ends the run when it is looked at.
"""

import collections
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from multistep_cm.reporting.metrics import Writer
from multistep_cm.reporting.progress import Progress
from multistep_cm.training.metrics import mean_metrics
from multistep_cm.training.speed import Speed
from multistep_cm.training.step import StepMetrics


class LateMetrics:
    """Metrics of calls that were dispatched, and what becomes of them.

    Args:
      config: of the run.
      writer: gets a row every `training.log_every` steps.
      speed: for MFU, where it is known.
      num_bad: the bad records that were met so far.
      diverged: the error for what is not finite at a step.
    """

    def __init__(
        self,
        config: ConfigDict,
        writer: Writer,
        speed: Speed | None,
        num_bad: Callable[[], int],
        diverged: Callable[[str, int], Exception],
    ) -> None:
        self._config = config
        self._writer = writer
        self._speed = speed
        self._num_bad = num_bad
        self._diverged = diverged
        # Calls that nobody has looked at: (last step, metrics).
        self._pending: collections.deque[tuple[int, StepMetrics]] = collections.deque()
        self._skipped_in_a_row = 0

    def add(self, step: int, metrics: StepMetrics) -> None:
        """Of the call that ends with this step; nothing is waited for."""
        self._pending.append((step, metrics))

    def wait_for_room(self, in_flight: int) -> None:
        """Return when fewer than so many calls are unfinished."""
        if len(self._pending) >= in_flight:
            jax.block_until_ready(self._pending[-in_flight])

    def fetch(self, up_to: int, bar: Progress) -> None:
        """Look at the metrics of the calls up to this step, check and write them."""
        log_every = self._config.training.log_every
        rows: list[StepMetrics] = []
        while self._pending and self._pending[0][0] <= up_to:
            step, metrics = self._pending.popleft()
            metrics = jax.device_get(metrics)
            self._check_finite(step, metrics)
            rows.append(metrics)
            is_last = not self._pending or self._pending[0][0] > up_to
            if is_last or step % log_every == 0:
                self._write(step, rows, bar)
                rows = []

    def _write(self, step: int, rows: list[StepMetrics], bar: Progress) -> None:
        """One line of metrics for the calls since the last one."""
        values = mean_metrics(rows)
        if bar.images_per_second:
            values["images_per_second"] = bar.images_per_second
            if self._speed:
                values["mfu"] = self._speed.mfu(bar.images_per_second)
        if self._config.data.bad_record_fraction:
            values["bad_records"] = self._num_bad()
        self._writer.scalars(step, values)
        bar.show({name: values[name] for name in ("loss", "mfu") if name in values})

    def _check_finite(self, step: int, metrics: StepMetrics) -> None:
        sound = np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"])
        if np.all(sound):
            return
        first = step - self._config.training.steps_per_call + 1
        raise self._diverged(
            "loss or gradient norm", first + int(np.argmin(np.atleast_1d(sound)))
        )
