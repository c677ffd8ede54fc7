"""What it costs to list, decode and prepare images: `python -m benchmarks.reading`.

Made-up JPEG files of ImageNet's size, on this machine, in one thread. How long TFDS
needs for the real dataset is estimated, from below, from how fast it writes them.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from multistep_cm.config import default_config
from multistep_cm.data.folders import find_images
from multistep_cm.data.sources import open_source

IMAGENET_IMAGES = 1_281_167 + 50_000
ARCHIVE_BYTES = 147_897_477_120 + 6_744_924_160  # of imagenet2012, as TFDS lists them
SHAPE = (387, 469, 3)
QUALITY = 95
DIFFERENT_IMAGES = 16
CLASSES = 1000


def main(words: list[str] | None = None) -> None:
    """Measure and print; a line each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading")
    parser.add_argument("--num_files", type=int, default=100_000, help="to list")
    parser.add_argument("--num_images", type=int, default=4_000, help="to read")
    arguments = parser.parse_args(words)
    print(f"{os.cpu_count()} CPU cores; one thread", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        print(listing(Path(folder), arguments.num_files), flush=True)
    images = pictures(DIFFERENT_IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        for line in decoding(Path(folder), images, arguments.num_images):
            print(line, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        print(writing(folder, images, arguments.num_images), flush=True)


def pictures(number: int) -> list[bytes]:
    """JPEG files of random pictures, about as large as ImageNet's."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(number):
        coarse = rng.integers(256, size=(24, 29, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize(SHAPE[1::-1], Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + rng.normal(scale=12, size=SHAPE)
        file = io.BytesIO()
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    return files


def folder_config(folder: Path, num_classes: int, image_size: int = 8) -> ConfigDict:
    """The `data` part of a config for a folder."""
    data = default_config().data
    data.name, data.directory = "folder", str(folder)
    data.num_classes, data.cache = num_classes, False
    data.image_size, data.channels = image_size, 3
    return data


def listing(folder: Path, number: int) -> str:
    """Empty files in class folders: only names are looked at."""
    for label in range(CLASSES):
        (folder / f"n{label:08}").mkdir()
    for index in range(max(number, CLASSES)):
        label = index % CLASSES
        (folder / f"n{label:08}" / f"n{label:08}_{index}.JPEG").touch()
    start = time.perf_counter()
    found = find_images(folder_config(folder, CLASSES))
    for split in found.splits.values():
        split.fingerprint()
    seconds = time.perf_counter() - start
    number = sum(len(split.paths) for split in found.splits.values())
    return (
        f"listing {number:,} files in {CLASSES:,} folders of a local disk: "
        f"{seconds:.2f} s"
    )


def decoding(folder: Path, images: list[bytes], number: int) -> Iterator[str]:
    """Files read and reduced to the sizes of the configs, one after the other."""
    for index in range(len(images)):
        (folder / f"{index}.jpg").write_bytes(images[index])
    mean = sum(map(len, images)) / len(images) / 1000
    for size in (64, 128):
        config = folder_config(folder, 0, size)
        config.evaluation_split = config.train_split  # none is held out
        source = open_source(config, config.train_split)
        rows = np.arange(number) % len(source)
        start = time.perf_counter()
        for chunk in np.array_split(rows, -(-number // 256)):
            source.read(chunk)
        rate = number / (time.perf_counter() - start)
        yield (
            f"decoding JPEG of {SHAPE[1]}x{SHAPE[0]} and {mean:.0f} kB to {size} "
            f"pixels: {rate:,.0f} images/s a thread"
        )


def writing(folder: str, images: list[bytes], number: int) -> str:
    """TFDS's own writer, of the same features as imagenet2012.

    So few images that it shuffles them in memory: above a gigabyte it does so on disk,
    with TensorFlow, and is slower.
    """

    def info(self: Any) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=CLASSES),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def generate(self: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        for index in range(number):
            name = f"{index}.JPEG"
            image = io.BytesIO(images[index % len(images)])
            yield name, {"image": image, "label": 0, "file_name": name}

    methods = {
        "VERSION": tfds.core.Version("1.0.0"),
        "name": "made_up",
        "_info": info,
        "_generate_examples": generate,
        "_split_generators": lambda self, _: {"train": self._generate_examples()},
    }
    with tfds.core.registered.skip_registration():
        made = type("MadeUp", (tfds.core.GeneratorBasedBuilder,), methods)
    builder = made(data_dir=folder, file_format="array_record")
    tfds.disable_progress_bar()
    start = time.perf_counter()
    builder.download_and_prepare()
    rate = number / (time.perf_counter() - start)
    hours = IMAGENET_IMAGES / rate / 3600
    return (
        f"writing them with TFDS as ArrayRecord: {rate:,.0f} images/s; at this rate "
        f"the {IMAGENET_IMAGES:,} of imagenet2012 ({ARCHIVE_BYTES / 1024**3:.0f} GiB) "
        f"take {hours:.1f} hours, shuffling on disk not counted (an estimate)"
    )


if __name__ == "__main__":
    main()
