"""A student's teacher: the averaged weights of a finished run."""

from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm import config as configs
from multistep_cm.checkpoints import Checkpoints
from multistep_cm.errors import UserError
from multistep_cm.files import is_folder
from multistep_cm.losses.signature import Params
from multistep_cm.training.ema import more_decays
from multistep_cm.training.initialization import abstract_params
from multistep_cm.training.methods import METHODS
from multistep_cm.workdir import read_config

SAME_AS_STUDENT = (
    "data.channels",
    "data.image_size",
    "data.num_classes",
    "data.range",
    "data.text",
    "diffusion.",
    "model.",
)
"""Teacher and student are one function of one process: these keys must agree."""

MAY_DIFFER = (
    "data.text_key",
    "data.text_mask_key",
    "model.dropout",
    "model.dtype",
    "model.remat",
)
"""Of those, the ones that change how a network is trained, not which network it is."""


def check_teacher(config: ConfigDict) -> None:
    """Raise UserError unless `teacher.workdir` holds a run that can teach this one.

    Missing, without checkpoint, of another architecture, schedule or image size
    (naming what differs), or guided though it never saw an image without its label.
    """
    workdir = Path(config.teacher.workdir)
    try:
        teacher = read_config(workdir)
    except UserError as error:
        raise UserError(f"config key teacher.workdir: {error}") from error
    others = [
        key for key in configs.flatten(config) if not key.startswith(SAME_AS_STUDENT)
    ]
    changed = configs.differences(teacher, config, (*others, *MAY_DIFFER))
    if changed:
        raise UserError(
            f"config key teacher.workdir: the teacher in {workdir} is another network "
            f"or process than this student (teacher -> student: {'; '.join(changed)})"
        )
    if METHODS[config.method].needs_teacher and METHODS[teacher.method].is_student:
        _check_grids(teacher, config)
    _check_guided(teacher, config)
    try:
        check_checkpoint(workdir)
    except UserError as error:
        raise UserError(f"config key teacher.workdir: {error}") from error


def _check_guided(teacher: ConfigDict, config: ConfigDict) -> None:
    """Guidance needs a teacher that also knows images without class or caption."""
    workdir, options = config.teacher.workdir, config.consistency
    if teacher.consistency.guidance_range:
        raise UserError(
            f"config key teacher.workdir: the teacher in {workdir} was trained with "
            "consistency.guidance_range and is told its scale; expected a network that "
            "is not: the diffusion model that it was distilled from"
        )
    if not options.guidance_scale and not options.guidance_range:
        return
    key = "guidance_range" if options.guidance_range else "guidance_scale"
    for kind, trained, dropout in (
        ("class", teacher.data.num_classes, "label_dropout"),
        ("caption", teacher.data.text != "none", "caption_dropout"),
    ):
        if trained and not teacher.training[dropout]:
            raise UserError(
                f"config key consistency.{key} is {options[key]}, but the teacher in "
                f"{workdir} was trained with training.{dropout} = 0: it knows no "
                f"prediction without a {kind}"
            )


def teacher_config(config: ConfigDict) -> ConfigDict:
    """A student's config as its teacher's network has it: told no scale of guidance."""
    changed = config.copy_and_resolve_references()
    changed.consistency.guidance_range = ()
    return changed


def _check_grids(teacher: ConfigDict, config: ConfigDict) -> None:
    """A student can teach only the jumps that it has learned."""
    consistency, jumps = config.consistency, teacher.consistency.student_steps
    ends = {consistency.teacher_steps_start, consistency.teacher_steps_end}
    if config.method == "progressive" and jumps != 2 * consistency.student_steps:
        wanted = f"{2 * consistency.student_steps}, twice consistency.student_steps"
    elif config.method == "tract" and ends != {jumps}:
        grid = " and ".join(f"{end:g}" for end in sorted(ends))
        wanted = f"{grid}, of consistency.teacher_steps_start and _end"
    elif config.method == "cd":
        wanted = "none: CD hops on any grid and needs a diffusion model as its teacher"
    else:
        return
    raise UserError(
        f"config key teacher.workdir: the teacher in {config.teacher.workdir} is a "
        f"student of {jumps} steps, expected {wanted}"
    )


def check_checkpoint(workdir: Path) -> None:
    """Raise UserError when nothing was saved in `workdir`; reads no checkpoint."""
    checkpoints = workdir / "checkpoints"
    if not is_folder(checkpoints) or not any(checkpoints.iterdir()):
        raise UserError(f"{workdir} holds no checkpoint: train it first")


def known_decays(config: ConfigDict) -> list[float]:
    """Of all averages that a run of this config tracks, the main one first."""
    return [config.training.ema_decay, *more_decays(config.training).values()]


def average_name(config: ConfigDict, ema_decay: float | None) -> str:
    """The name in a checkpoint of the average of this decay; None: the main one.

    Raises UserError for a decay that the run does not track.
    """
    known = known_decays(config)
    if ema_decay is None or ema_decay == known[0]:
        return "ema"
    names = {decay: name for name, decay in more_decays(config.training).items()}
    if ema_decay not in names:
        raise UserError(
            f"--ema_decay is {ema_decay}, but the run tracks only "
            f"{', '.join(map(str, known))}: choose of these, or train another with "
            f"--config.training.more_ema_decays={ema_decay}"
        )
    return names[ema_decay]


def load_ema(
    workdir: Path,
    config: ConfigDict,
    mesh: Mesh,
    ema_decay: float | None = None,
    programs: Path | None = None,
) -> tuple[int, Params]:
    """The newest good step of a workdir and its averaged parameters, over the mesh.

    `config` describes the network and the averages; of these that of `ema_decay` is
    read, by default the main one. `programs` is that of `make_init`. Raises UserError
    when there is no such checkpoint, or no such average.
    """
    name = average_name(config, ema_decay)
    like = abstract_params(config, mesh, programs)
    with Checkpoints(workdir) as checkpoints:
        found = checkpoints.restore({name: like})
    if found is None:
        raise UserError(f"{workdir} holds no checkpoint: train it first")
    step, trees, _ = found
    return step, trees[name]
