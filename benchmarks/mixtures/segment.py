"""One segment of the loss, drawn where everything is known: docs/images/segment.png.

  python -m benchmarks.mixtures.segment [--output=FILE.png]

Algorithm 1 on the two normals of docs/truth.md, K = 4 segments, a grid of T = 16. The
teacher is the exact posterior mean and its hop is DDIM. On the left the student is that
teacher, as at the start of a distillation; on the right it is the exact consistency
function, which is what it should become. Nothing is trained: it takes seconds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")  # no screen is needed, whatever the machine has

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.mixtures.figure import BLUE, ORANGE, PRESET
from benchmarks.mixtures.students import SCHEDULE
from multistep_cm.diffusion import ddim
from multistep_cm.diffusion.parameterization import Denoiser
from multistep_cm.errors import UserError
from multistep_cm.files import written_aside
from multistep_cm.truth import flows, mixtures, presets

OUTPUT = Path(__file__).parents[2] / "docs" / "images" / "segment.png"
STUDENT_STEPS, TEACHER_STEPS = 4, 16
T, T_STEP = 0.5, 0.25
S = T - 1 / TEACHER_STEPS
Z_T = 0.25
"""Not far from the border between the modes, where the flow bends most."""

NUM_TIMES = 61
BLACK = "#000000"

Path1D = tuple[np.ndarray, np.ndarray]
"""Times [m], decreasing, and z there [m]."""


class Triangle(NamedTuple):
    """What one draw of algorithm 1 does, as paths.

    Attributes:
        hop: the teacher, from z_t to z_s.
        target: the student from z_s to the segment's end, without gradient.
        jump: the student from z_t to the segment's end.
    """

    hop: Path1D
    target: Path1D
    jump: Path1D

    @property
    def gap(self) -> float:
        """Of the two ends: what the loss makes small."""
        return abs(float(self.jump[1][-1] - self.target[1][-1]))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the picture; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mixtures.segment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE.png")
    output = parser.parse_args(argv).output
    try:
        if output.suffix != ".png" or not output.absolute().parent.is_dir():
            raise UserError(f"--output is {output}, expected a .png in a folder")
        with jax.enable_x64(True):
            draw(output)
    except UserError as error:
        print(f"mixtures.segment: {error}", file=sys.stderr)
        return 2
    print(f"wrote {output}")
    return 0


def denoisers() -> tuple[Denoiser, Denoiser]:
    """The exact posterior mean, and the exact consistency function; float64."""
    mixture = presets.PRESETS[PRESET]("float64")
    mean = mixtures.denoiser(mixture, SCHEDULE)
    flow = flows.transport(mixture)
    return mean, flows.consistency_function(flow, SCHEDULE, STUDENT_STEPS, mean)


def triangle(teacher: Denoiser, student: Denoiser) -> Triangle:
    """Steps 2 to 4 of the loss from `Z_T`; call it with float64 enabled."""
    hop = ddim_path(teacher, Z_T, T, S)
    target = ddim_path(student, float(hop[1][-1]), S, T_STEP)
    return Triangle(hop, target, ddim_path(student, Z_T, T, T_STEP))


def ddim_path(denoiser: Denoiser, z: float, start: float, end: float) -> Path1D:
    """DDIM from `start` to each time until `end` on the one guess at `start`."""
    z_t = jnp.full((1, 1), z)
    x_hat = jax.jit(denoiser)(z_t, jnp.full(1, start), {})
    times = np.linspace(start, end, NUM_TIMES)
    logsnr = SCHEDULE.logsnr(jnp.asarray(times))
    points = ddim.ddim_step(
        jnp.repeat(x_hat, NUM_TIMES, 0),
        jnp.repeat(z_t, NUM_TIMES, 0),
        SCHEDULE.logsnr(start),
        logsnr,
    )
    return times, np.asarray(points)[:, 0]


def flow_path(z: float) -> Path1D:
    """The exact way from `Z_T` to the segment's end."""
    flow = flows.transport(presets.PRESETS[PRESET]("float64"))
    times = np.linspace(T, T_STEP, NUM_TIMES)
    start = jnp.full((NUM_TIMES, 1), z)
    points = jax.jit(flow)(
        start, SCHEDULE.logsnr(T), SCHEDULE.logsnr(jnp.asarray(times))
    )
    return times, np.asarray(points)[:, 0]


def draw(path: Path) -> None:
    """Both panels as a PNG."""
    teacher, exact = denoisers()
    figure, axes = plt.subplots(1, 2, figsize=(10.0, 3.8), sharey=True)
    titles = ("before: the student is the teacher", "after: it is consistent")
    for axis, title, student in zip(axes, titles, (teacher, exact), strict=True):
        draw_panel(axis, triangle(teacher, student))
        axis.set_title(title)
    axes[0].set_ylabel("z")
    axes[0].legend(loc="upper left", frameon=False, fontsize=9)
    figure.tight_layout(w_pad=1.0)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=110, format="png")
    plt.close(figure)


def draw_panel(axis: Axes, drawn: Triangle) -> None:
    """One segment with its grid, the exact flow, the hop and both jumps."""
    ticks = np.arange(TEACHER_STEPS + 1) / TEACHER_STEPS
    for time in ticks[(ticks >= T_STEP) & (ticks <= T)]:
        axis.axvline(time, color="#dddddd", linewidth=0.8, zorder=0)
    axis.plot(*flow_path(Z_T), color="#999999", linestyle=":", label="exact flow")
    axis.plot(*drawn.jump, color=BLUE, label="student from z_t")
    axis.plot(*drawn.hop, color=BLACK, linewidth=2.2, label="teacher's hop to z_s")
    axis.plot(*drawn.target, color=ORANGE, label="student from z_s (target)")
    for times, points in drawn:
        axis.scatter(times[[0, -1]], points[[0, -1]], s=16, color=BLACK, zorder=3)
    ends = float(drawn.jump[1][-1]), float(drawn.target[1][-1])
    axis.annotate(
        "",
        xy=(T_STEP - 0.008, ends[0]),
        xytext=(T_STEP - 0.008, ends[1]),
        arrowprops={"arrowstyle": "<->", "shrinkA": 0, "shrinkB": 0},
    )
    axis.text(T_STEP - 0.014, sum(ends) / 2, f"{drawn.gap:.2f}", va="center")
    axis.set_xlim(T + 0.012, T_STEP - 0.05)
    axis.set_xticks([T, S, T_STEP], ["t = 1/2", "s", "t_step = 1/4"])


if __name__ == "__main__":
    sys.exit(main())
