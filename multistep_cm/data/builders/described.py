"""What the files of a prepared dataset say of themselves, checked before TFDS reads it.

TFDS imports the module of any class that `features.json` or `dataset_info.json` names.
A dataset is data, so only features of TFDS itself are let through.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import naming
from tensorflow_datasets.core.utils import file_utils

from multistep_cm.errors import UserError
from multistep_cm.files import read_text, reason

FILES = ("features.json", "dataset_info.json")
DEPTHS = ("*", "*/*")
"""Where they lie below the dataset's folder: in VERSION, or in CONFIG/VERSION."""

CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
"""Under which a class is named, in the forms that TFDS has had."""

KNOWN_CLASS = re.compile(r"tensorflow_datasets\.core\.features\.\w+(\.\w+)?")


def check_described(name: str, data_dir: str) -> None:
    """Raise UserError for a prepared dataset that names a class of somebody else.

    `name` and `data_dir` are those of `tfds.builder`. Also for a description that is no
    JSON, or larger than any dataset's. What is not there is not looked for.
    """
    for path in description_files(name, data_dir):
        try:
            values = json.loads(read_text(path) if _is_here(path) else path.read_text())
            names = [*class_names(values)]
        except OSError as error:
            raise UserError(f"{path} cannot be read: {reason(error)}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is damaged ({error}): delete that folder and prepare the "
                "dataset again"
            ) from error
        for found in names:
            if not KNOWN_CLASS.fullmatch(found):
                raise UserError(
                    f"{path} names the class {found!r:.100}, expected one of "
                    "tensorflow_datasets.core.features: reading it would run code that "
                    "comes with the data"
                )


def description_files(name: str, data_dir: str) -> Iterator[Any]:
    """The files of `FILES` of every version of a dataset, on disk or in a bucket."""
    try:
        dataset, _ = naming.parse_builder_name_kwargs(name)
    except ValueError:  # TFDS will say so
        return
    for folder in file_utils.list_data_dirs(data_dir or None):
        root = tfds.core.Path(folder) / dataset.name
        for depth in DEPTHS:
            for file in FILES:
                yield from (
                    Path(path) if _is_here(path) else path
                    for path in root.glob(f"{depth}/{file}")
                )


def class_names(values: Any) -> Iterator[str]:
    """Every dotted name under `CLASS_KEYS`, also in JSON that is a text in JSON."""
    if isinstance(values, dict):
        for key, value in values.items():
            if key in CLASS_KEYS and isinstance(value, str) and "." in value:
                yield value
            yield from class_names(value)
    elif isinstance(values, list):
        for value in values:
            yield from class_names(value)
    elif isinstance(values, str) and values.lstrip()[:1] in ("{", "["):
        try:
            inner = json.loads(values)
        except ValueError:
            return
        yield from class_names(inner)


def _is_here(path: Any) -> bool:
    return "://" not in str(path)
