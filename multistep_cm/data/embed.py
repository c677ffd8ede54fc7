"""Embed the captions of a TFDS dataset, into another one with images and embeddings.

  python -m multistep_cm.data.embed --data=digit_scenes/16x16 \\
      --encoder=google/t5-v1_1-base --length=77 --output=tfds --name=captioned

The same command goes on where it was stopped. It prints the config keys with which the
new dataset is read. --encoder is a name or folder of `transformers`, which downloads
models; install it with pip install 'multistep_cm[embed]'.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from multistep_cm.data.builders.catalog import open_builder
from multistep_cm.data.embedding import (
    Encode,
    embed_split,
    open_records,
    read_parts,
    transformers_encoder,
    write_dataset,
)
from multistep_cm.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status; bad input prints one sentence and gives 2."""
    parser = argparse.ArgumentParser(
        prog="python -m multistep_cm.data.embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", required=True, help="the dataset's name in TFDS")
    add("--directory", default="", help="its data_dir; default that of TFDS")
    add("--caption_key", default="caption", help="the feature with the text")
    add("--image_key", default="image", help="the feature with the image")
    add("--encoder", required=True, help="a name or folder of transformers")
    add("--length", type=int, default=77, help="tokens of a caption (default 77)")
    add("--batch_size", type=int, default=64, help="captions at a time (default 64)")
    add("--output", required=True, type=Path, help="data_dir of the new dataset")
    add("--name", default="captioned", help="its name (default captioned)")
    arguments = parser.parse_args(argv)
    try:
        encode = check(arguments)
        embed(arguments, encode)
    except UserError as error:
        print(f"embed: {error}", file=sys.stderr)
        return 2
    return 0


def check(arguments: argparse.Namespace) -> Encode:
    """The encoder, after all that can be wrong before. Raises UserError."""
    for key in ("length", "batch_size"):
        if getattr(arguments, key) < 1:
            raise UserError(f"--{key} is {getattr(arguments, key)}, expected above 0")
    if not re.fullmatch("[a-z][a-z0-9_]*", arguments.name):
        raise UserError(
            f"--name is {arguments.name!r}, expected small letters, digits and _"
        )
    features = open_builder(arguments.data, arguments.directory).info.features
    for key, kind in (
        ("caption_key", tfds.features.Text),
        ("image_key", tfds.features.Image),
    ):
        feature = getattr(arguments, key)
        if feature not in features or not isinstance(features[feature], kind):
            raise UserError(
                f"--{key} is {feature!r}, expected a {kind.__name__} of dataset "
                f"{arguments.data!r}, which has {', '.join(features)}"
            )
    return transformers_encoder(arguments.encoder, arguments.length)


def embed(arguments: argparse.Namespace, encode: Encode) -> None:
    """Embed every split, write the dataset and say how it is read."""
    source = open_builder(arguments.data, arguments.directory)
    of_encoder = f"{arguments.data} {arguments.encoder} {arguments.length}"
    digest = hashlib.sha256(of_encoder.encode()).hexdigest()[:12]
    folder = arguments.output / f"{arguments.name}_parts_{digest}"
    parts = {}
    for split in source.info.splits:
        records = open_records(source, split)
        captions = [record[arguments.caption_key].decode() for record in records]
        number = len(captions)

        def report(done: int, split: str = split, number: int = number) -> None:
            if done % (10 * arguments.batch_size) == 0 or done == number:
                print(f"{split}: {done} of {number} captions", flush=True)

        parts[split] = embed_split(
            captions, folder / split, encode, arguments.batch_size, report
        )
    keys = (arguments.caption_key, arguments.image_key)
    path = write_dataset(arguments.name, arguments.output, source, *keys, parts)
    embedding, _ = next(read_parts(next(iter(parts.values()))))
    length, width = embedding.shape
    print(
        f"wrote {path} (the parts in {folder} are no longer needed); read it with\n"
        f"  --config.data.name={arguments.name} --config.data.directory="
        f"{arguments.output} --config.data.text=precomputed\n"
        "  --config.data.text_key=embedding "
        "--config.data.text_mask_key=embedding_mask\n"
        f"  --config.data.text_length={length} --config.data.text_width={width}"
    )


if __name__ == "__main__":
    sys.exit(main())
