"""The metrics of steps that the device may not have finished: looked at late.

They are fetched one interval late, so that the host never waits for the device except
to save. What is not finite ends the run when it is looked at, or is counted
(`finite.py`).
"""

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from multistep_cm.reporting.metrics import Writer
from multistep_cm.reporting.progress import Progress
from multistep_cm.training.finite import SKIPPED, first_too_many
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
      diverged: the error for what is not finite at a step, of which so many were
        skipped with it (None: none may be).
    """

    def __init__(
        self,
        config: ConfigDict,
        writer: Writer,
        speed: Speed | None,
        num_bad: Callable[[], int],
        diverged: Callable[[str, int, int | None], Exception],
    ) -> None:
        self._config = config
        self._writer = writer
        self._speed = speed
        self._num_bad = num_bad
        self._diverged = diverged
        # Calls that nobody has looked at: (last step, metrics).
        self._pending: collections.deque[tuple[int, StepMetrics]] = collections.deque()

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
        shown: dict[str, Any] = {
            name: values[name] for name in ("loss", "mfu") if name in values
        }
        if SKIPPED in rows[-1]:
            values[SKIPPED] = int(np.atleast_1d(rows[-1][SKIPPED])[-1])
            if values[SKIPPED]:
                shown["skipped"] = values[SKIPPED]
        self._writer.scalars(step, values)
        bar.show(shown)

    def _check_finite(self, step: int, metrics: StepMetrics) -> None:
        training = self._config.training
        index = first_too_many(metrics, training)
        if index is None:
            return
        skipped = None
        if training.on_nan == "skip":
            skipped = int(np.atleast_1d(metrics[SKIPPED])[index])
        first = step - training.steps_per_call + 1
        raise self._diverged("loss or gradient norm", first + index, skipped)
