"""From the metrics of many steps to one line of numbers; on the host."""

from collections.abc import Sequence

import numpy as np

from multistep_cm.training.finite import sound_steps
from multistep_cm.training.step import StepMetrics


def mean_metrics(rows: Sequence[StepMetrics]) -> dict[str, float]:
    """Means over calls and steps; each time bin over the examples that fell into it.

    Steps that are not finite, which were skipped, count in none of them; loss and
    gradient norm are left out when there is no other step.
    """
    sound = np.concatenate([sound_steps(row) for row in rows])
    values = {}
    if sound.any():
        for name in ("loss", "grad_norm"):
            steps = np.concatenate([np.atleast_1d(row[name]) for row in rows])
            values[name] = float(np.mean(steps[sound]))
    values["learning_rate"] = float(np.atleast_1d(rows[-1]["learning_rate"])[-1])
    bins = rows[0]["bin_loss"].shape[-1]
    sums, counts = (
        np.concatenate([row[name].reshape(-1, bins) for row in rows])[sound].sum(0)
        for name in ("bin_loss", "bin_count")
    )
    for index in np.flatnonzero(counts):
        name = f"loss_t/{index / bins:.3f}_to_{(index + 1) / bins:.3f}"
        values[name] = float(sums[index] / counts[index])
    return values
