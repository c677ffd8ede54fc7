"""What a config must satisfy before anything is compiled or downloaded."""

from collections.abc import Mapping
from typing import Any, get_args

from ml_collections import ConfigDict

from multistep_cm.config import check_types, flatten
from multistep_cm.data.sources import FOLDER
from multistep_cm.diffusion import samplers, timesteps, weighting
from multistep_cm.diffusion.parameterization import Prediction
from multistep_cm.errors import UserError
from multistep_cm.files import path_problem
from multistep_cm.losses.hops import HopName
from multistep_cm.losses.segments import GRIDS
from multistep_cm.models.build import check_model
from multistep_cm.models.text import STRIDE, TextKind
from multistep_cm.training.finite import POLICIES
from multistep_cm.training.methods import METHODS

CHOICES: Mapping[str, tuple[str, ...]] = {
    "method": tuple(METHODS),
    "data.text": get_args(TextKind),
    "data.resize": ("area", "bilinear", "bicubic"),
    "diffusion.schedule": ("cosine", "shifted_cosine", "interpolated_cosine"),
    "diffusion.prediction": get_args(Prediction),
    "consistency.curriculum": get_args(timesteps.Curriculum),
    "consistency.grid": GRIDS,
    "consistency.hop": get_args(HopName),
    "consistency.weight": get_args(weighting.Weight),
    "consistency.norm": get_args(weighting.Norm),
    "training.on_nan": POLICIES,
    "training.decay": ("cosine", "linear", "constant"),
    "sampling.method": get_args(samplers.Method),
    "sampling.x_variance": ("analytic", "measured"),
}

POSITIVE = (
    "data.image_size",
    "data.channels",
    "data.num_threads",
    "data.text_length",
    "data.prefetch",
    "diffusion.noise_low",
    "diffusion.noise_high",
    "consistency.teacher_steps_start",
    "consistency.teacher_steps_end",
    "consistency.huber_epsilon",
    "training.num_steps",
    "training.batch_size",
    "training.learning_rate",
    "training.epsilon",
    "training.clip_norm",
    "training.accumulation",
    "training.steps_per_call",
    "training.log_every",
    "training.time_bins",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "sampling.num_steps",
    "evaluation.num_images",
    "evaluation.batch_size",
)

NOT_NEGATIVE = (
    "seed",
    "data.num_classes",
    "data.text_width",
    "consistency.anneal_steps",
    "consistency.eta",
    "consistency.multiscale",
    "consistency.guidance_scale",
    "training.max_skipped_steps",
    "training.stall_timeout",
    "training.warmup_steps",
    "sampling.guidance_scale",
    "sampling.eta",
    "sampling.every_steps",
    "sampling.num_previews",
)

FRACTIONS = (
    "data.bad_record_fraction",
    "consistency.target_decay",
    "model.dropout",
    "training.beta1",
    "training.beta2",
    "training.ema_decay",
    "training.label_dropout",
    "training.caption_dropout",
)


FOLDERS = ("data.directory", "teacher.workdir")
"""Keys that may name a folder; empty ones name none."""


def validate(config: ConfigDict) -> None:
    """Raise UserError for the first thing in the config that cannot be meant.

    Knows nothing of devices, datasets or workdirs; those have checks of their own.
    """
    check_types(config)
    flat = flatten(config)
    for key in FOLDERS:
        problem = flat[key] and path_problem(flat[key])
        if problem:
            raise UserError(
                f"config key {key} is {flat[key]!r:.200}, expected the name of a "
                f"folder: {problem}"
            )
    for key, choices in CHOICES.items():
        if flat[key] not in choices:
            expected = ", ".join(choices)
            raise UserError(f"config key {key} is {flat[key]!r}, expected: {expected}")
    _check_range(flat, POSITIVE, "above 0", lambda value: value > 0)
    _check_range(flat, NOT_NEGATIVE, "at least 0", lambda value: value >= 0)
    _check_range(flat, FRACTIONS, "in [0, 1)", lambda value: 0 <= value < 1)
    if len(config.data.range) != 2 or config.data.range[0] >= config.data.range[1]:
        raise UserError(
            f"config key data.range is {config.data.range}, expected (low, high)"
        )
    for key in ("sampling.guidance_interval", "consistency.guidance_interval"):
        _check_interval(key, flat[key])
    _check_decays(config)
    _check_steps(config)
    if METHODS[config.method].is_student:
        _check_consistency(config)
    if METHODS[config.method].needs_teacher and not config.teacher.workdir:
        raise UserError(
            f"config key teacher.workdir is empty, but method {config.method} needs a "
            "trained teacher: pass --config.teacher.workdir=DIR"
        )
    _check_guidance(config)
    _check_text(config)
    try:
        check_model(config.model, config.data.image_size)
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_range(
    flat: Mapping[str, Any], keys: tuple[str, ...], expected: str, holds: Any
) -> None:
    for key in keys:
        if not holds(flat[key]):
            raise UserError(f"config key {key} is {flat[key]}, expected {expected}")


def _check_interval(key: str, interval: tuple[float, ...]) -> None:
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
        raise UserError(
            f"config key {key} is {interval}, expected (low, high) with "
            "0 <= low < high <= 1: the times t that are guided"
        )


def _check_decays(config: ConfigDict) -> None:
    """Every average is another one, and none a sum that grows."""
    training = config.training
    more = training.more_ema_decays
    all_decays = {training.ema_decay, *more}
    if len(all_decays) <= len(more) or not all(0 <= decay < 1 for decay in more):
        raise UserError(
            f"config key training.more_ema_decays is {more}, expected numbers in "
            f"[0, 1), none twice and none equal to training.ema_decay = "
            f"{training.ema_decay}"
        )


def _check_steps(config: ConfigDict) -> None:
    """Everything that happens every so many steps must fall on whole calls."""
    training, per_call = config.training, config.training.steps_per_call
    for key, every in (
        ("training.num_steps", training.num_steps),
        ("training.log_every", training.log_every),
        ("checkpoint.every_steps", config.checkpoint.every_steps),
        ("sampling.every_steps", config.sampling.every_steps),
    ):
        if every % per_call:
            raise UserError(
                f"config key {key} is {every}, expected a multiple of "
                f"training.steps_per_call = {per_call}"
            )


def _check_consistency(config: ConfigDict) -> None:
    consistency, method = config.consistency, METHODS[config.method]
    student_steps = consistency.student_steps
    smallest = min(consistency.teacher_steps_start, consistency.teacher_steps_end)
    if student_steps < 1:
        raise UserError(
            f"config key consistency.student_steps is {student_steps}, expected at "
            "least 1"
        )
    if method.uses_grid and student_steps > smallest:
        raise UserError(
            f"config key consistency.student_steps is {student_steps}, more than the "
            f"{smallest:g} steps of the teacher's grid "
            "(consistency.teacher_steps_start and _end): lower one or raise the other"
        )
    size, pools = config.data.image_size, consistency.multiscale
    if size % 2**pools:
        raise UserError(
            f"config key consistency.multiscale is {pools}, but data.image_size = "
            f"{size} cannot be halved that often"
        )


def _check_guidance(config: ConfigDict) -> None:
    """Only what CD and guidance distillation learn from can be guided, and only away
    from "no class" and "no caption"."""
    scale, ends = config.consistency.guidance_scale, config.consistency.guidance_range
    if ends and (len(ends) != 2 or not 0 <= ends[0] < ends[1]):
        raise UserError(
            f"config key consistency.guidance_range is {ends}, expected () or (low, "
            "high) with 0 <= low < high: the scales that are drawn"
        )
    if ends and scale:
        raise UserError(
            f"config key consistency.guidance_scale is {scale}, but "
            f"consistency.guidance_range is {ends}: set one of them"
        )
    wanted = config.sampling.guidance_scale
    if ends and not ends[0] <= wanted <= ends[1]:
        raise UserError(
            f"config key sampling.guidance_scale is {wanted}, expected a scale within "
            f"consistency.guidance_range = {ends}, which the student learns"
        )
    key, value = "guidance_range" if ends else "guidance_scale", ends or scale
    if value and not METHODS[config.method].is_guided:
        raise UserError(
            f"config key consistency.{key} is {value}, but method {config.method} "
            "guides no teacher: expected none, or method cd or guidance"
        )
    if value and not config.data.num_classes and config.data.text == "none":
        raise UserError(
            f"config key consistency.{key} is {value}, but the model has no classes or "
            "captions to guide to (data.num_classes = 0 and data.text = none)"
        )


def _check_text(config: ConfigDict) -> None:
    """Captions come in whole strides, of TFDS, to networks that attend to them."""
    data = config.data
    if data.text == "none":
        return
    if config.model.name == "mlp":
        raise UserError(
            f"config key data.text is {data.text!r}, but model mlp reads no captions: "
            "set model.name to unet or uvit"
        )
    if data.name == FOLDER:
        raise UserError(
            f"config key data.text is {data.text!r}, but a folder of images has no "
            "captions: make a TFDS dataset of them"
        )
    if data.text == "bytes" and data.text_length % STRIDE:
        raise UserError(
            f"config key data.text_length is {data.text_length}, expected a multiple "
            f"of {STRIDE}"
        )
    if data.text == "precomputed" and not data.text_width:
        raise UserError(
            "config key data.text_width is 0, but data.text is 'precomputed': set it "
            "to the width of the embeddings"
        )


def check_batch(config: ConfigDict, data_parallel: int, num_processes: int) -> None:
    """The global batch must divide over devices, microbatches and processes.

    Raises UserError naming both numbers.
    """
    batch_size, parts = config.training.batch_size, config.training.accumulation
    if batch_size % (data_parallel * parts):
        raise UserError(
            f"config key training.batch_size is {batch_size}, not divisible by "
            f"{data_parallel} data-parallel devices x {parts} microbatches "
            f"(training.accumulation) = {data_parallel * parts}"
        )
    if batch_size % num_processes:
        raise UserError(
            f"config key training.batch_size is {batch_size}, not divisible by "
            f"{num_processes} processes"
        )
