"""A run's folder: its config, and whether a run may go on in it."""

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from multistep_cm import config as configs
from multistep_cm.errors import UserError
from multistep_cm.files import is_folder, read_text, reason, write_text

CONFIG_NAME = "config.json"

MAY_CHANGE = (
    "checkpoint.",
    "data.bad_record_fraction",
    "data.cache",
    "data.directory",
    "data.num_threads",
    "data.prefetch",
    "evaluation.",
    "mesh.",
    "model.remat",
    "sampling.",
    "teacher.workdir",
    "training.log_every",
    "training.max_skipped_steps",
    "training.on_nan",
    "training.stall_timeout",
    "training.steps_per_call",
)
"""Keys that a resumed run may change: they alter no trained number."""


def read_config(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`; UserError when there is none."""
    path = workdir / CONFIG_NAME
    if not is_folder(workdir):
        raise UserError(f"workdir {workdir} does not exist: train a run into it first")
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{workdir} is no workdir: it holds no {CONFIG_NAME}; train a run into it"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a config in JSON: {error}") from error
    return configs.from_json(text, str(path))


def override_config(config: ConfigDict, overrides: Mapping[str, str]) -> ConfigDict:
    """The config of a trained run on another machine: keys of `MAY_CHANGE` set anew.

    Raises UserError for any other key: it says what was trained.
    """
    for key, text in overrides.items():
        if key in configs.flatten(config) and not key.startswith(MAY_CHANGE):
            raise UserError(
                f"config key {key} cannot be set here: the run is trained, and what it "
                f"is stands in its {CONFIG_NAME}"
            )
        configs.override(config, key, text)
    return config


def open_workdir(workdir: Path, config: ConfigDict) -> None:
    """Make `workdir` this run's: created if absent, its config written or compared.

    Raises UserError when it cannot be written, or when it holds a run whose config
    differs in anything but `MAY_CHANGE` (naming what differs).
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"workdir {workdir} cannot be made: {error.strerror}"
        ) from error
    path = workdir / CONFIG_NAME
    if path.exists():
        changed = configs.differences(read_config(workdir), config, MAY_CHANGE)
        if changed:
            raise UserError(
                f"workdir {workdir} holds a run with another config "
                f"({'; '.join(changed)}): choose another --workdir or the same config"
            )
    write_text(path, configs.to_json(config))


def check_shared(workdir: Path, config: ConfigDict) -> None:
    """Raise UserError unless this process finds what process 0 has just written."""
    path = workdir / CONFIG_NAME
    if not path.exists() or configs.differences(read_config(workdir), config):
        raise UserError(
            f"{path} is not what process 0 has written there: several processes need "
            "one --workdir that all of them share"
        )
