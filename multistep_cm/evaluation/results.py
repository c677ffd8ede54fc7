"""The file `evaluation.json` of a run: its rows, which of them are done, and writing.

A row is a way to sample the run and what was measured of its images. The file is
written whole after each row, so that a call that was stopped goes on where it was.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from multistep_cm import provenance
from multistep_cm.diffusion.guidance import ALWAYS
from multistep_cm.errors import UserError
from multistep_cm.exporting import portable_config
from multistep_cm.files import alone_with, read_text, write_text
from multistep_cm.generation import SamplingOptions
from multistep_cm.training.methods import METHODS

EVALUATION_NAME = "evaluation.json"

Row = dict[str, Any]
"""One line of the results: method, steps, network_calls, frechet_distance, .."""

WAY = (
    *("method", "steps", "guidance_scale", "guidance_interval", "x_variance", "eta"),
    "ema_decay",
)
"""What makes two rows the same way to sample: the later replaces the earlier."""

IMAGES = (*WAY, "train_step", "weights_sha256", "seed", "num_images")
"""What makes the images of two rows the same: their numbers are merged."""


TEXTS = ("method", "x_variance", "weights_sha256", "commit", "fid_reference")
NUMBERS = (
    *("steps", "network_calls", "guidance_scale", "eta", "ema_decay", "seed"),
    *("num_images", "train_step", "frechet_distance", "frechet_distance_std"),
    *("pixel_frechet_distance", "pixel_frechet_distance_std", "class_accuracy"),
    *("variance_ratio", "fid", "sfid", "inception_score", "precision", "recall"),
    *("images_per_second", "floor", "classifier_accuracy", "reference_images"),
    "fid_reference_images",
)
"""Keys whose values a table or a chart formats."""


def row_name(
    config: ConfigDict, way: SamplingOptions, ema_decay: float | None = None
) -> Row:
    """The part of a row that says how its images are sampled, and of which average.

    That is the one of `ema_decay`; None: the main one.
    """
    student = METHODS[config.method].is_student
    is_limited = way.guidance_scale and way.guidance_interval != ALWAYS
    is_measured = way.method == "addim" and way.x_variance == "measured"
    return {
        "method": config.method if student else f"teacher_{way.method}",
        "steps": way.num_steps,
        "network_calls": way.network_calls,
        "guidance_scale": way.guidance_scale,
        "guidance_interval": [*way.guidance_interval] if is_limited else None,
        "x_variance": way.x_variance,
        # A key only where it means something.
        **({"eta": config.sampling.eta} if is_measured else {}),
        "ema_decay": config.training.ema_decay if ema_decay is None else ema_decay,
    }


def read_results(workdir: Path) -> dict[str, Any]:
    """What `evaluation.json` holds; only an empty list of rows where there is none.

    Raises UserError for a file of another form.
    """
    path = workdir / EVALUATION_NAME
    try:
        values = json.loads(read_text(path))
    except FileNotFoundError:
        return {"rows": []}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): move it away and evaluate again"
        ) from error
    rows = values.get("rows") if isinstance(values, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(
            f'{path} holds no list "rows" of results: move it away and evaluate again'
        )
    for where, held in [("it", values), *((f"row {n}", r) for n, r in enumerate(rows))]:
        problem = _problem(held)
        if problem:
            raise UserError(
                f"{path}: {where} has {problem}: move it away and evaluate again"
            )
    results: dict[str, Any] = values
    if (decay := main_decay(results)) is not None:
        for row in rows:
            # Rows of the first versions are all of the main average.
            row.setdefault("ema_decay", decay)
    return results


def _problem(values: Mapping[str, Any]) -> str:
    """What is not as an evaluation writes it, of the keys that it knows; or nothing."""
    for key, value in values.items():
        if value is None:
            continue
        if key in TEXTS and not isinstance(value, str):
            return f"{key} = {value!r:.100}, expected text"
        if key in NUMBERS and not _is_number(value):
            return f"{key} = {value!r:.100}, expected a number"
        if key == "guidance_interval" and not (
            isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
        ):
            return f"{key} = {value!r:.100}, expected two numbers"
    return ""


def _is_number(value: Any) -> bool:
    """Not finite ones too: a distance may be NaN."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, float)


def main_decay(results: Mapping[str, Any]) -> float | None:
    """That of the run's main average, as its results say; None where they do not."""
    config = results.get("config")
    training = config.get("training") if isinstance(config, dict) else None
    decay = training.get("ema_decay") if isinstance(training, dict) else None
    return decay if _is_number(decay) else None


def find_done(rows: Sequence[Row], wanted: Row) -> Row | None:
    """The row that was measured with all settings of `wanted`, if there is one."""
    return next(
        (row for row in rows if all(_same(row, wanted, key) for key in wanted)), None
    )


def keep_row(
    workdir: Path, config: ConfigDict, row: Row, facts: Mapping[str, Any]
) -> Row:
    """Write a row into `evaluation.json`, at once and whole; the row as it is there.

    Other processes may keep rows of theirs meanwhile: none is lost.

    It replaces the row of the same way to sample; what that one measured of the same
    images is kept. `facts` are what the file says beside its rows, such as the floor.
    """
    with alone_with(workdir / EVALUATION_NAME):
        old = read_results(workdir)
        others = [other for other in old["rows"] if not _agree(other, row, WAY)]
        same = [other for other in old["rows"] if _agree(other, row, IMAGES)]
        merged = {**(same[0] if same else {}), **row}
        results = {
            "floor": old.get("floor"),
            "classifier_accuracy": old.get("classifier_accuracy"),
            **facts,
            **provenance.versions("jax", "numpy"),
            "commit": row.get("commit"),
            "config": portable_config(config),
            "rows": [*others, merged],
        }
        write_text(workdir / EVALUATION_NAME, json.dumps(results, indent=2) + "\n")
    return merged


def _agree(row: Row, other: Row, keys: Sequence[str]) -> bool:
    return all(row.get(key) == other.get(key) for key in keys)


def _same(row: Row, wanted: Row, key: str) -> bool:
    # A number that an older version did not write is not a number that is None.
    return key in row and row[key] == wanted[key]
