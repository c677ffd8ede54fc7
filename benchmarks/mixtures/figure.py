"""The paper's figure 1 from trained models: 1, 2 and 4 jumps, and the flow itself."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")  # no screen is needed, whatever the machine has

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.mixtures.students import SCHEDULE, Problem
from multistep_cm.diffusion import ddim
from multistep_cm.files import written_aside
from multistep_cm.losses.signature import Params
from multistep_cm.truth import flows, mixtures, presets

PRESET = "two_normals"
PANELS = (1, 2, 4)
"""The K that are drawn, beside the flow; those that were not trained are left out."""

BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito: safe for colour-blind readers
REACH = 2.6
NUM_LINES = 12
NUM_TIMES = 241

Path2D = tuple[np.ndarray, np.ndarray]
"""Times [m], decreasing, and the points there [m, lines]."""


def draw(path: Path, problem: Problem, students: Mapping[int, Params]) -> None:
    """Trajectories of the students in `students` (K to parameters) from one z_1.

    Writes a PNG. `problem` must be that of `PRESET`, which has one dimension.
    """
    z_1 = starting_points()
    shown = [steps for steps in PANELS if steps in students]
    figure, panels = plt.subplots(
        1, len(shown) + 1, figsize=(3.0 * len(shown) + 3.0, 3.2), sharey=True
    )
    axes = list(np.atleast_1d(panels))
    for axis, steps in zip(axes, shown, strict=False):
        jumps = student_path(problem, students[steps], z_1, steps)
        draw_density(axis, problem)
        draw_jumps(axis, jumps)
        axis.set_title(f"{steps} step{'s' if steps > 1 else ''} (trained)")
    draw_density(axes[-1], problem)
    draw_lines(axes[-1], flow_path(z_1))
    axes[-1].set_title("∞ steps (exact flow)")
    axes[0].set_ylabel("z")
    figure.tight_layout(w_pad=0.6)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=110, format=path.suffix[1:])
    plt.close(figure)


def starting_points() -> np.ndarray:
    """Evenly spaced quantiles of N(0, 1), float32 [lines]: none in the middle."""
    levels = (jnp.arange(NUM_LINES) + 0.5) / NUM_LINES
    return np.asarray(jax.scipy.special.ndtri(levels), np.float32)


def student_path(
    problem: Problem, params: Params, z_1: np.ndarray, steps: int
) -> list[Path2D]:
    """The jumps of algorithm 2, each with all of its DDIM path: `steps` of them."""
    path = []
    z = jnp.asarray(z_1)[:, None]
    for index in range(steps, 0, -1):
        t, end = index / steps, (index - 1) / steps
        x_hat = problem.predict(params, z, jnp.full(len(z), t), {}, None)
        times = np.linspace(t, end, NUM_TIMES // steps + 2)
        ends = SCHEDULE.logsnr(times)
        points = np.asarray(_ddim_to_each(x_hat, z, SCHEDULE.logsnr(t), ends))
        path.append((times, points[..., 0]))
        z = jnp.asarray(points[-1])
    return path


_ddim_to_each = jax.jit(jax.vmap(ddim.ddim_step, in_axes=(None, None, None, 0)))
"""DDIM steps of all points to each of several ends: [ends, points, 1]."""


def flow_path(z_1: np.ndarray) -> Path2D:
    """The exact trajectories."""
    times = np.linspace(1.0, 0.0, NUM_TIMES)
    with jax.enable_x64(True):
        flow = flows.transport(presets.PRESETS[PRESET]("float64"))
        start = jnp.broadcast_to(jnp.asarray(z_1, jnp.float64), (NUM_TIMES, len(z_1)))
        end = SCHEDULE.logsnr(jnp.asarray(times))
        points = jax.jit(flow)(start, SCHEDULE.logsnr(1.0), end)
        return times, np.asarray(points)


def draw_density(axis: Axes, problem: Problem) -> None:
    """q(z_t), each time scaled to its own maximum, and the axes' labels."""
    times = np.linspace(0.0, 1.0, 161)
    grid = np.linspace(-REACH, REACH, 201)
    z = jnp.tile(jnp.asarray(grid, jnp.float32), len(times))[:, None]
    logsnr = jnp.repeat(SCHEDULE.logsnr(times.astype(np.float32)), len(grid))
    log_density = mixtures.noisy_log_density(problem.mixture, z, logsnr)
    density = np.exp(np.asarray(log_density)).reshape(len(times), len(grid))
    density /= density.max(axis=1, keepdims=True)
    axis.imshow(
        density.T,
        extent=(0.0, 1.0, -REACH, REACH),
        origin="lower",
        aspect="auto",
        cmap="Greys",
        vmax=3.0,  # soft: the lines are what is to be seen
        interpolation="bilinear",
    )
    axis.set_xlim(1.02, -0.02)
    axis.set_ylim(-REACH, REACH)
    axis.set_xticks([1.0, 0.75, 0.5, 0.25, 0.0], ["1", "¾", "½", "¼", "0"])
    axis.set_xlabel("t")


def draw_jumps(axis: Axes, jumps: list[Path2D]) -> None:
    """Each jump's DDIM path thin, and dots where the network was asked or arrived."""
    for times, points in jumps:
        draw_lines(axis, (times, points))
        for moment in (0, -1):
            colors = [line_color(i) for i in range(points.shape[1])]
            at = np.full(points.shape[1], times[moment])
            axis.scatter(at, points[moment], s=9, c=colors, zorder=3, clip_on=False)


def draw_lines(axis: Axes, path: Path2D) -> None:
    """One line for each starting point."""
    times, points = path
    for index in range(points.shape[1]):
        axis.plot(times, points[:, index], color=line_color(index), linewidth=1.1)


def line_color(index: int) -> str:
    """By the mode to which the exact flow leads this line."""
    return BLUE if index >= NUM_LINES // 2 else ORANGE
