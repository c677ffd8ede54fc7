"""An image dataset of TFDS, prepared on disk, as a source of examples."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from multistep_cm.data import transforms
from multistep_cm.data.bad_records import BadRecordError
from multistep_cm.data.builders.catalog import open_builder, prepare_command
from multistep_cm.data.sources import Batch
from multistep_cm.errors import UserError


@dataclass(frozen=True)
class TfdsSource:
    """Reads and decodes examples from disk at every access."""

    name: str
    split: str
    records: Any  # a TFDS data source
    config: ConfigDict
    # Of each file in turn: its path, the first record in it, how many there are.
    files: Sequence[tuple[str, int, int]] = ()
    fingerprint: str = ""
    num_bad: int = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return {key: value[0] for key, value in self.read(np.array([index])).items()}

    def read(self, indices: np.ndarray) -> Batch:
        config, size = self.config, self.config.image_size
        images = np.empty((len(indices), size, size, config.channels), np.uint8)
        labels = np.zeros(len(indices), np.int32)
        for row, index in enumerate(indices.tolist()):
            record = self._record(index)
            try:
                images[row] = transforms.to_array(
                    record[config.image_key], size, config.channels, config.resize
                )
            # Decoders raise what they like on broken data, SyntaxError for one.
            except Exception as error:
                raise BadRecordError(index, self._example(index), error) from error
            if config.label_key:
                labels[row] = self._label(index, int(record[config.label_key]))
        return {"image": images, "label": labels}

    def _record(self, index: int) -> Any:
        try:
            return self.records[index]
        except OSError as error:
            raise UserError(
                f"{self._example(index)} cannot be read: {error}; bring the file back "
                "or prepare the dataset again"
            ) from error
        # A damaged file raises RuntimeError, a damaged record what TFDS's parser likes.
        except Exception as error:
            raise BadRecordError(index, self._example(index), error) from error

    def _label(self, index: int, label: int) -> int:
        # A label out of range would silently become another class on the device.
        num_classes = self.config.num_classes
        if num_classes and not 0 <= label < num_classes:
            raise UserError(
                f"{self._example(index)} has the label {label}, expected 0 to "
                f"{num_classes - 1} (data.num_classes = {num_classes})"
            )
        return label

    def _example(self, index: int) -> str:
        """Its name, with the file and its place there where they are known."""
        name = f"example {index} of split {self.split!r} of dataset {self.name!r}"
        for file, first, number in self.files:
            if index < number:
                return f"{name} (record {first + index} of {file})"
            index -= number
        return name


def open_tfds(config: ConfigDict, split: str) -> TfdsSource:
    """The split, after every check that needs no example; see `check_data`."""
    builder = open_builder(config.name, config.directory)
    _check_image(config, builder.info.features)
    _check_label(config, builder.info.features)
    records = _open_records(config, builder, split)
    files: list[tuple[str, int, int]] = []
    if builder.info.splits:  # mocked datasets have none
        files = [
            (
                part.filename,
                part.skip,
                part.take,
            )
            for part in builder.info.splits[split].file_instructions
        ]
    return TfdsSource(config.name, split, records, config, files)


def _open_records(
    config: ConfigDict, builder: tfds.core.DatasetBuilder, split: str
) -> Any:
    """TFDS's data source; images stay files' bytes, which `transforms` decodes."""
    splits = list(builder.info.splits)
    is_prepared = bool(splits)
    decoders = None
    # Mocked datasets (tfds.testing.mock_data) are not prepared and hold arrays only.
    if is_prepared:
        decoders = {
            key: tfds.decode.SkipDecoding()
            for key, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Image)
        }
    try:
        return builder.as_data_source(split, decoders=decoders)
    except NotImplementedError as error:
        command = prepare_command(config.name, config.directory)
        if not is_prepared:
            raise UserError(
                f"dataset {config.name!r} is not prepared in {builder.data_path}: run "
                f"`{command}` (most TFDS datasets need TensorFlow for that, and only "
                "for that), or set data.directory to where it is"
            ) from error
        raise UserError(
            f"dataset {config.name!r} in {builder.data_path} is prepared as "
            f"{builder.info.file_format.value}, which cannot be read by index: delete "
            f"that folder or set another data.directory, and run `{command}`"
        ) from error
    except (ValueError, KeyError) as error:
        raise UserError(
            f"split {split!r} of dataset {config.name!r} does not exist or is empty, "
            f"expected {_listed(splits)}, or a slice like 'train[:90%]' (config keys "
            "data.train_split and data.evaluation_split)"
        ) from error
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"dataset {config.name!r} in {builder.data_path} is damaged: {error}; "
            "delete that folder and prepare it again"
        ) from error


def _check_image(config: ConfigDict, features: tfds.features.FeaturesDict) -> None:
    key = config.image_key
    if key not in features:
        raise UserError(_missing_key(config, "data.image_key", features))
    feature = features[key]
    shape = feature.shape
    is_image = isinstance(feature, (tfds.features.Image, tfds.features.Tensor))
    if not is_image or len(shape) not in (2, 3):
        raise UserError(
            f"config key data.image_key is {key!r}, but that feature of dataset "
            f"{config.name!r} is no image: {feature!r}"
        )
    if feature.np_dtype != np.uint8:
        raise UserError(
            f"feature {key!r} of dataset {config.name!r} has type "
            f"{np.dtype(feature.np_dtype)}, expected images of uint8"
        )
    if len(shape) == 3 and shape[-1] not in (1, 3, None):
        raise UserError(
            f"feature {key!r} of dataset {config.name!r} has {shape[-1]} channels, "
            "expected 1 (grayscale) or 3 (RGB)"
        )


def _check_label(config: ConfigDict, features: tfds.features.FeaturesDict) -> None:
    key, num_classes = config.label_key, config.num_classes
    if not key:
        if num_classes:
            raise UserError(
                f"config key data.label_key is empty, but data.num_classes is "
                f"{num_classes}: set the key, or data.num_classes = 0"
            )
        return
    if key not in features:
        message = _missing_key(config, "data.label_key", features)
        raise UserError(f"{message}; without labels set it to '', data.num_classes = 0")
    feature = features[key]
    is_scalar = isinstance(feature, tfds.features.Tensor) and feature.shape == ()
    if not is_scalar or not np.issubdtype(feature.np_dtype, np.integer):
        raise UserError(
            f"config key data.label_key is {key!r}, but that feature of dataset "
            f"{config.name!r} is no integer label: {feature!r}"
        )
    held = getattr(feature, "num_classes", None)
    if num_classes and held and held > num_classes:
        raise UserError(
            f"config key data.num_classes is {num_classes}, but label {key!r} of "
            f"dataset {config.name!r} has {held} classes: set data.num_classes = {held}"
        )


def _missing_key(
    config: ConfigDict, config_key: str, features: tfds.features.FeaturesDict
) -> str:
    held = config_key.removeprefix("data.")
    key = config[held]
    near = difflib.get_close_matches(key, list(features), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return (
        f"config key {config_key} is {key!r}, which dataset {config.name!r} does not "
        f"have{hint}; it has {_listed(features)}"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
