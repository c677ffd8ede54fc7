"""The config: its keys with their defaults, and how a file and overrides make one.

A config file is a Python file with `get_config(arguments: str) -> ConfigDict`, so it is
code: run only files that you trust. It starts from `default_config()` and sets keys.
"""

import difflib
import functools
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from multistep_cm.errors import UserError
from multistep_cm.files import read_text
from multistep_cm.values import check_value, parse_value


def default_config() -> ConfigDict:
    """Every key that exists, with its default; unknown keys are errors."""
    config = ConfigDict()
    config.seed = 0
    # What to train: a key of training/methods.py.
    config.method = "denoising"
    config.data = _data()
    config.diffusion = _diffusion()
    config.model = _model()
    config.teacher = _teacher()
    config.consistency = _consistency()
    config.training = _training()
    config.checkpoint = _checkpoint()
    config.sampling = _sampling()
    config.evaluation = _evaluation()
    config.mesh = _mesh()
    return config.lock()


def _data() -> ConfigDict:
    """The dataset and how its images reach the network."""
    data = ConfigDict()
    data.name = "digits8"  # any TFDS name, with "/config" if it has one; or folder
    data.directory = ""  # TFDS data_dir, empty is TFDS's own default; or the folder
    data.train_split = "train"
    data.evaluation_split = "test"
    data.image_key = "image"  # this and the next are of TFDS only
    data.label_key = "label"  # empty: no labels are read
    data.image_size = 8
    data.channels = 1
    data.num_classes = 10  # 0: an unconditional model
    data.text = "none"  # captions as bytes or precomputed embeddings
    data.text_key = "caption"  # the feature that holds them
    data.text_mask_key = "caption_mask"  # of embeddings: which of them are there
    data.text_length = 96  # bytes, a multiple of 4, or embeddings of a caption
    data.text_width = 0  # of precomputed embeddings
    data.resize = "area"  # area, bilinear or bicubic; then centre crop
    data.flip = False  # random horizontal flip
    data.range = (-1.0, 1.0)  # what 0 and 255 become
    data.cache = True  # decode once and keep in memory
    data.bad_record_fraction = 0.0  # records that may be undecodable; 0: none
    data.num_threads = 2
    data.prefetch = 2  # batches ready ahead of the step
    return data


def _diffusion() -> ConfigDict:
    """The noise schedule and what the network predicts."""
    diffusion = ConfigDict()
    diffusion.schedule = "interpolated_cosine"  # cosine, shifted_cosine
    diffusion.noise_low = 32.0  # noise resolution at t = 0
    diffusion.noise_high = 64.0  # the same at t = 1
    diffusion.logsnr_min = -15.0
    diffusion.logsnr_max = 15.0
    diffusion.prediction = "v"  # v, x or eps
    return diffusion


def _model() -> ConfigDict:
    """The network."""
    model = ConfigDict()
    model.name = "unet"  # unet, uvit or mlp
    model.channels = (64, 128)  # one per resolution, highest first; mlp: the width
    model.blocks = (2, 2)  # one per resolution; the last is the middle; mlp: one
    model.attention_resolutions = (4,)  # feature-map sizes with attention
    model.head_dim = 64
    model.mlp_ratio = 4
    model.condition_width = 256
    model.text_width = 128  # of the encoder of captions, if there are any
    model.text_blocks = 2  # of its transformer over bytes
    model.text_head_dim = 32
    model.dropout = 0.0
    model.dropout_resolutions = ()  # feature-map sizes; empty is everywhere
    model.dtype = "float32"  # compute dtype; parameters are float32
    model.remat = "none"  # none, dots, partial or full
    model.scan_blocks = True
    model.unrolled_resolutions = ()  # feature-map sizes whose scans are written out
    return model


def _teacher() -> ConfigDict:
    """The run that teaches a student."""
    teacher = ConfigDict()
    teacher.workdir = ""  # a finished run whose EMA weights teach
    teacher.initialize_student = True
    return teacher


def _consistency() -> ConfigDict:
    """What students learn: algorithm 1, and the methods beside it."""
    consistency = ConfigDict()
    consistency.student_steps = 4
    consistency.teacher_steps_start = 64.0
    consistency.teacher_steps_end = 1280.0
    consistency.anneal_steps = 100_000
    consistency.curriculum = "geometric"  # square_root or doubling
    consistency.grid = "uniform"  # in t; karras, or karras_lognormal for iCT's draws
    consistency.eta = 0.75
    consistency.hop = "addim"  # ddim, addim or heun
    consistency.weight = "snr_plus_1"  # see diffusion/weighting.py
    consistency.norm = "example"  # element, squared or pseudo_huber
    consistency.huber_epsilon = 1e-4
    consistency.multiscale = 0  # 2x2 average pools that count in the loss too
    consistency.same_dropout = True  # one mask for student and target
    consistency.target_decay = 0.0  # average that makes targets; 0: the student itself
    consistency.guidance_scale = 0.0  # of CD's teacher; 0: none
    consistency.guidance_range = ()  # low,high: scales drawn and told to the student
    consistency.guidance_interval = (0.0, 1.0)  # the times t that are guided
    return consistency


def _training() -> ConfigDict:
    """The optimizer steps."""
    training = ConfigDict()
    training.num_steps = 10_000
    training.batch_size = 256  # global
    training.learning_rate = 1e-3
    training.warmup_steps = 100
    training.decay = "cosine"  # cosine, linear or constant
    training.beta1 = 0.9
    training.beta2 = 0.99
    training.epsilon = 1e-12
    training.clip_norm = 1.0
    training.ema_decay = 0.999
    training.more_ema_decays = ()  # averages beside it, to find the best: 0.99,0.9999
    training.label_dropout = 0.1
    training.caption_dropout = 0.1
    training.accumulation = 1  # microbatches per step
    training.steps_per_call = 1  # optimizer steps per dispatch
    training.on_nan = "stop"  # a step whose loss or gradient is not finite; or skip
    training.max_skipped_steps = 10  # in the whole run; with more a run stops
    training.stall_timeout = 1800.0  # seconds without a step that end the run; 0: none
    training.log_every = 50
    training.time_bins = 8  # the loss is logged for each bin of t
    return training


def _checkpoint() -> ConfigDict:
    """When to save, and how many saves to keep."""
    checkpoint = ConfigDict()
    checkpoint.every_steps = 1000
    checkpoint.keep = 2
    return checkpoint


def _sampling() -> ConfigDict:
    """How samples are drawn."""
    sampling = ConfigDict()
    sampling.method = "ddim"  # ddim, addim, heun or ancestral; students: ddim
    sampling.num_steps = 128  # students: their student_steps
    sampling.guidance_scale = 0.0
    sampling.guidance_interval = (0.0, 1.0)  # the times t that are guided
    sampling.x_variance = "analytic"  # what aDDIM puts back; or measured, times eta
    sampling.eta = 0.75
    sampling.every_steps = 0  # grids while training; 0 is at the end only
    sampling.num_previews = 40  # images of such a grid; 0 draws none
    return sampling


def _evaluation() -> ConfigDict:
    """How much is measured."""
    evaluation = ConfigDict()
    evaluation.num_images = 5000
    evaluation.batch_size = 500
    return evaluation


def _mesh() -> ConfigDict:
    """How the devices are laid out; one size may be -1."""
    mesh = ConfigDict()
    mesh.data = -1  # -1: all devices that the others leave
    mesh.fsdp = 1
    mesh.tensor = 1
    return mesh


def load_config(specification: str, overrides: Mapping[str, str]) -> ConfigDict:
    """`FILE[:arguments]` and `{"training.num_steps": "10"}` to a locked config.

    FILE is Python, or the `config.json` of a run, which takes no arguments.

    Raises UserError for a file that is missing or does not load, arguments that the
    file refuses, unknown keys (with the nearest) and values of the wrong type.
    """
    name, _, arguments = specification.partition(":")
    path = Path(name)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        is_file = False
    if not is_file:
        raise UserError(f"--config: there is no file {name}")
    if path.suffix == ".json":
        return _load_json(path, arguments, overrides)
    module_spec = importlib.util.spec_from_file_location("config_file", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config: {name} is not a Python file (expected *.py)")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except (SyntaxError, ImportError, NameError, OSError, ValueError) as error:
        raise UserError(f"--config: {name} does not load: {error}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {name} defines no function get_config(arguments)")
    try:
        config = module.get_config(arguments)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"--config: {name}: {message}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config: {name}: get_config returned {config!r}, expected a ConfigDict "
            "made from default_config()"
        )
    check_types(config, f"--config: {name}: ")
    for key, text in overrides.items():
        override(config, key, text)
    return config.lock()


def _load_json(path: Path, arguments: str, overrides: Mapping[str, str]) -> ConfigDict:
    if arguments:
        raise UserError(f"--config: {path} is JSON and takes no arguments: {arguments}")
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--config: {path} cannot be read: {error}") from error
    config = from_json(text, f"--config: {path}")
    for key, text in overrides.items():
        override(config, key, text)
    return config


def parse_arguments(arguments: str, **defaults: Any) -> dict[str, Any]:
    """`"stage=cd,steps=4"` over the defaults, each value of its default's type.

    Raises UserError for an argument that the config file does not have, and for a
    value of another type.
    """
    values = dict(defaults)
    for part in filter(None, (arguments or "").split(",")):
        name, equals, text = part.partition("=")
        if name not in defaults or not equals:
            expected = ", ".join(f"{key}={value}" for key, value in defaults.items())
            raise UserError(
                f"config argument {part!r} is not known; expected some of {expected}"
            )
        values[name] = parse_value(f"config argument {name}", text, defaults[name])
    return values


def override(config: ConfigDict, key: str, text: str) -> None:
    """Set one dotted key from text, in the type that it has; UserError if it cannot."""
    _set(config, key, parse_value(f"config key {key}", text, _default_of(key)))


def check_types(config: ConfigDict, origin: str = "") -> None:
    """Raise UserError unless `config` has every key, and each its default's type.

    `origin` is what the sentence begins with. A config file is code: it may set what is
    no number, or build a config of its own.
    """
    flat, defaults = flatten(config), _flat_defaults()
    for key in sorted(defaults.keys() - flat.keys()):
        raise UserError(
            f"{origin}the config has no key {key!r}: make it from default_config()"
        )
    for key, value in flat.items():
        check_value(f"{origin}config key {key}", value, _default_of(key))


@functools.cache
def _flat_defaults() -> Mapping[str, Any]:
    return MappingProxyType(flatten(default_config()))


def _default_of(key: str) -> Any:
    """The default of a dotted key; UserError, with the nearest, for an unknown one."""
    defaults = _flat_defaults()
    if key not in defaults:
        (near,) = difflib.get_close_matches(key[:200], defaults, n=1, cutoff=0.0)
        raise UserError(
            f"config key {key!r:.200} does not exist; did you mean {near!r}?"
        )
    return defaults[key]


def _set(config: ConfigDict, key: str, value: Any) -> None:
    *folders, leaf = key.split(".")
    for folder in folders:
        config = config[folder]
    config[leaf] = value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (Mapping, ConfigDict)):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_json(config: ConfigDict) -> str:
    """Stable, indented JSON."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str, origin: str) -> ConfigDict:
    """A config from what `to_json` wrote; keys that have come since get defaults.

    Raises UserError, naming `origin`, for text that is not such a config.
    """
    config = default_config()
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"it holds {values!r:.40}, not keys with values")
        stored = flatten(values)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin} is not a config in JSON: {error}") from error
    for key, value in stored.items():
        try:
            _set(config, key, check_value(f"config key {key}", value, _default_of(key)))
        except UserError as error:
            raise UserError(f"{origin}: {error}") from error
    return config.lock()


def differences(
    old: ConfigDict, new: ConfigDict, ignore: Sequence[str] = ()
) -> list[str]:
    """`key: old -> new` for every key that differs and starts with none of `ignore`."""
    before, after = flatten(old), flatten(new)
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(tuple(ignore))
    ]
