"""Sample a preset with every sampler, and measure what comes out."""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.samplers.angle_heun import sample_by_angle
from benchmarks.samplers.measures import (
    Truth,
    exact_moments,
    floors,
    measure,
    random_directions,
)
from multistep_cm.diffusion.ddim import x_variance_analytic
from multistep_cm.diffusion.samplers import Grid, Method, network_calls, sample
from multistep_cm.diffusion.schedules import Schedule, cosine
from multistep_cm.diffusion.x_variance import measure_x_variance, table_x_variance
from multistep_cm.errors import UserError
from multistep_cm.files import write_text
from multistep_cm.truth import flows, mixtures
from multistep_cm.truth.mixtures import Mixture
from multistep_cm.truth.presets import PRESETS

SCHEDULE = cosine()
FLOOR_REPEATS = 16
SHOWN_TIMES = (0.25, 0.5, 0.75, 1.0)

Results: TypeAlias = dict[str, Any]
"""What results.json holds: `num_samples` and `seed`; by preset the `floors` (measure to
mean and spread) and `x_variance` ([t, value] pairs); `analytic_x_variance`; and `rows`,
one for each preset, method and budget of network calls."""


@dataclasses.dataclass(frozen=True)
class Way:
    """A sampler and its options.

    Attributes:
        method: as `samplers.sample` names it.
        grid: spacing of the times.
        eta: scales the measured x_var of aDDIM; None is the analytic x_var.
        schedule: the range of log-SNR.
        by_angle: Heun in the angle instead of sigma / alpha.
    """

    method: Method
    grid: Grid = "uniform"
    eta: float | None = None
    schedule: Schedule = SCHEDULE
    by_angle: bool = False


# Karras et al. start at sigma = 80 and end at 0.002; ours runs from 1808 to 0.00055.
EDM_RANGE = cosine(-2 * math.log(80), -2 * math.log(0.002))

WAYS: Mapping[str, Way] = {
    "ddim": Way("ddim"),
    "addim_analytic": Way("addim"),
    "addim_eta_0.5": Way("addim", eta=0.5),
    "addim_eta_0.75": Way("addim", eta=0.75),
    "addim_eta_1": Way("addim", eta=1.0),
    "heun_uniform": Way("heun"),
    "heun_karras": Way("heun", grid="karras"),
    "heun_edm": Way("heun", grid="karras", schedule=EDM_RANGE),
    "heun_angle": Way("heun", by_angle=True),
    "ancestral": Way("ancestral"),
}


@dataclasses.dataclass(frozen=True)
class Laboratory:
    """One preset, ready to measure samplers on.

    Attributes:
        mixture: the distribution.
        truth: what samples are compared with.
        z_1: the noise that every sampler starts from, [num_samples, d].
        key: for the noise of ancestral sampling.
        times: where x_var was measured, [n].
        x_variance: E||x - x_hat||^2 / d at these times, [n].
        flow_end: where the exact flow takes z_1, if it is known, [num_samples, d].
    """

    mixture: Mixture
    truth: Truth
    z_1: jax.Array
    key: jax.Array
    times: jax.Array
    x_variance: jax.Array
    flow_end: np.ndarray | None


def empty_results(num_samples: int, seed: int) -> Results:
    """Results before anything is measured."""
    logsnr = SCHEDULE.logsnr(jnp.array(SHOWN_TIMES))
    analytic = x_variance_analytic(logsnr).tolist()
    return {
        "num_samples": num_samples,
        "seed": seed,
        "floors": {},
        "x_variance": {},
        "analytic_x_variance": _at_shown_times(analytic),
        "rows": [],
    }


def _at_shown_times(values: Sequence[float]) -> list[list[float]]:
    return [list(pair) for pair in zip(SHOWN_TIMES, values, strict=True)]


def steps_within(method: Method, budget: int) -> int:
    """The largest number of steps whose network calls do not exceed `budget` >= 1."""
    return max(n for n in range(1, budget + 1) if network_calls(method, n) <= budget)


def measure_preset(
    preset: str, calls: Sequence[int], results: Results, workdir: Path
) -> None:
    """Add the rows of one preset that `results` lacks, written way by way."""
    known = {(row["preset"], row["method"], row["budget"]) for row in results["rows"]}
    missing = {
        name: budgets
        for name in WAYS
        if (budgets := [n for n in calls if (preset, name, n) not in known])
    }
    if not missing:
        print(f"{preset}: nothing to measure", flush=True)
        return
    lab = set_up(preset, results, max(calls))
    for name, budgets in missing.items():
        start = time.perf_counter()
        results["rows"] += measure_way(preset, lab, name, budgets)
        write_text(workdir / "results.json", json.dumps(results, indent=1) + "\n")
        seconds = time.perf_counter() - start
        print(f"{preset}: {name}: {seconds:.1f} seconds", flush=True)


def set_up(preset: str, results: Results, finest: int) -> Laboratory:
    """Draw truth and noise, measure floors and x_var, and note these in `results`.

    Raises UserError for too few samples for the preset's dimension.
    """
    mixture, number = PRESETS[preset]("float32"), results["num_samples"]
    if number <= mixture.dimension:
        raise UserError(
            f"--num_samples is {number}, expected more than the {mixture.dimension} "
            f"dimensions of {preset}"
        )
    keys = jax.random.split(jax.random.key(results["seed"]), 6)
    draws = jax.jit(mixtures.draw, static_argnums=2)
    with jax.enable_x64(True):
        doubled = jax.tree.map(lambda leaf: leaf.astype("float64"), mixture)
        mean, covariance = map(np.asarray, mixtures.moments(doubled))
    z_1 = jax.random.normal(keys[0], (number, mixture.dimension))
    truth = Truth(
        np.asarray(draws(mixture, keys[1], number)),
        exact_moments(mean, covariance),
        random_directions(mixture.dimension),
    )
    repeats = [
        np.asarray(draws(mixture, key, number))
        for key in jax.random.split(keys[2], FLOOR_REPEATS)
    ]
    found = floors(repeats, truth)
    results["floors"][preset] = {k: dataclasses.asdict(v) for k, v in found.items()}
    x = draws(mixture, keys[3], number)
    # On the finest grid: the grids of 1, 2, 4 .. calls are parts of it.
    times = jnp.arange(1, finest + 1) / finest
    x_variance = _measured_x_variance(mixture, x, keys[4], times)
    shown = _measured_x_variance(mixture, x, keys[4], jnp.array(SHOWN_TIMES))
    results["x_variance"][preset] = _at_shown_times(shown.tolist())
    end = flow_end(doubled, z_1) if mixture.dimension == 1 else None
    if end is not None:
        row = {"preset": preset, "method": "exact_flow", **measure(end, truth)}
        others = [r for r in results["rows"] if r["method"] != "exact_flow"]
        results["rows"] = [*others, {**row, "budget": None}]
    return Laboratory(mixture, truth, z_1, keys[5], times, x_variance, end)


@jax.jit
def _measured_x_variance(
    mixture: Mixture, x: jax.Array, key: jax.Array, times: jax.Array
) -> jax.Array:
    """E||x - x_hat||^2 / d at each of `times`, [n]: eta is 1."""
    exact = mixtures.denoiser(mixture, SCHEDULE)
    return measure_x_variance(exact, SCHEDULE, x, {}, key, times, eta=1.0)


def flow_end(doubled: Mixture, z_1: jax.Array) -> np.ndarray:
    """Where the exact flow of a 1-D mixture in float64 takes z_1, [num_samples, 1]."""
    with jax.enable_x64(True):
        start, end = SCHEDULE.logsnr(1.0), SCHEDULE.logsnr(0.0)
        points = jnp.asarray(np.asarray(z_1), "float64")
        return np.asarray(jax.jit(flows.transport(doubled))(points, start, end))


def measure_way(
    preset: str, lab: Laboratory, name: str, budgets: Sequence[int]
) -> list[dict[str, Any]]:
    """One row for each budget of calls; budgets with equal steps share samples."""
    way = WAYS[name]

    @functools.cache
    def measured(num_steps: int) -> dict[str, float]:
        z_0 = np.asarray(sample_in(lab, way, num_steps))
        numbers = measure(z_0, lab.truth)
        if lab.flow_end is not None:
            difference = z_0.astype(np.float64) - lab.flow_end
            numbers["flow_error"] = float(np.sqrt(np.mean(difference**2)))
        return numbers

    rows = []
    for budget in budgets:
        steps = steps_within(way.method, budget)
        counts = {"steps": steps, "calls": network_calls(way.method, steps)}
        row = {"preset": preset, "method": name, "budget": budget, **counts}
        rows.append({**row, **measured(steps)})
    return rows


def sample_in(lab: Laboratory, way: Way, num_steps: int) -> jax.Array:
    """z_0 of the laboratory's z_1, [num_samples, d]."""
    if way.eta is None:
        return _compiled(lab.mixture, lab.z_1, lab.key, None, way, num_steps)
    known = (lab.times, way.eta * lab.x_variance)
    # One program serves every eta.
    way = dataclasses.replace(way, eta=None)
    return _compiled(lab.mixture, lab.z_1, lab.key, known, way, num_steps)


@functools.partial(jax.jit, static_argnames=("way", "num_steps"))
def _compiled(
    mixture: Mixture,
    z_1: jax.Array,
    key: jax.Array,
    x_variance: tuple[jax.Array, jax.Array] | None,
    way: Way,
    num_steps: int,
) -> jax.Array:
    """`x_variance`: times and values, both [n]."""
    exact = mixtures.denoiser(mixture, way.schedule)
    if way.by_angle:
        return sample_by_angle(exact, way.schedule, z_1, num_steps)
    return sample(
        exact,
        way.schedule,
        z_1,
        num_steps,
        way.method,
        key=key,
        x_variance=None if x_variance is None else table_x_variance(*x_variance),
        grid=way.grid,
    )
