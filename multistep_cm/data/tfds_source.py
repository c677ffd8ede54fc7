"""An image dataset of TFDS, prepared on disk, as a source of examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from multistep_cm.data import captions, transforms
from multistep_cm.data.bad_records import BadRecordError
from multistep_cm.data.builders.catalog import open_builder, prepare_command
from multistep_cm.data.sources import Batch
from multistep_cm.data.tfds_features import (
    check_image,
    check_label,
    check_text,
    listed,
)
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
    cut: captions.CutCounter | None = None  # of captions as bytes

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
        text = captions.empty_arrays(config, len(indices))
        texts = []
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
            if config.text == "bytes":
                texts.append(_as_text(record[config.text_key]))
            elif config.text == "precomputed":
                name = self._example(index)
                for key, value in captions.read_caption(record, config, name).items():
                    text[key][row] = value
        if self.cut is not None:
            text, num_cut = captions.encode_bytes(texts, config.text_length)
            self.cut.add(num_cut)
        return {"image": images, "label": labels, **text}

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


def _as_text(value: Any) -> str:
    """TFDS gives texts as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def open_tfds(
    config: ConfigDict, split: str, warn: Callable[[str], None] = lambda _: None
) -> TfdsSource:
    """The split, after every check that needs no example; see `check_data`.

    `warn` is told how many captions are cut.
    """
    builder = open_builder(config.name, config.directory)
    check_image(config, builder.info.features)
    check_label(config, builder.info.features)
    check_text(config, builder.info.features)
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
    cut = None
    if config.text == "bytes":
        where = f"split {split!r} of dataset {config.name!r}"
        cut = captions.CutCounter(where, config.text_length, warn)
    return TfdsSource(config.name, split, records, config, files, cut=cut)


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
            f"expected {listed(splits)}, or a slice like 'train[:90%]' (config keys "
            "data.train_split and data.evaluation_split)"
        ) from error
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"dataset {config.name!r} in {builder.data_path} is damaged: {error}; "
            "delete that folder and prepare it again"
        ) from error
