"""Embeddings of captions, made once and kept in a TFDS dataset beside the images.

The captions of every split go through an encoder batch by batch; what is done is kept
in files of a part each, so a run that was stopped goes on. Then images, captions and
embeddings are written as one dataset in ArrayRecord, which `data.text=precomputed`
reads.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorflow_datasets as tfds
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from multistep_cm.errors import UserError
from multistep_cm.files import written_aside

Encode: TypeAlias = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
"""Captions to embeddings, float [n, length, width], and their mask, bool
[n, length]."""

PART = 1024
"""Captions of a file; what a stopped run loses at most."""


def embed_split(
    captions: Sequence[str],
    folder: Path,
    encode: Encode,
    batch_size: int,
    report: Callable[[int], None] = lambda done: None,
) -> list[Path]:
    """The files of the parts, in order; those that are not there yet are made.

    Each holds `embedding` float16 and `mask` bool, of up to 1,024 captions. `report` is
    told how many captions are done after each batch. Raises UserError for embeddings
    that float16 does not hold, and for parts that another encoder has left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in range(0, len(captions), PART):
        part = captions[start : start + PART]
        path = folder / f"{start // PART:06}.safetensors"
        paths.append(path)
        if not _is_whole(path, len(part)):
            done = functools.partial(_shifted, report, start)
            _write_part(path, part, encode, batch_size, done)
        report(start + len(part))
    return paths


def _shifted(report: Callable[[int], None], start: int, done: int) -> None:
    report(start + done)


def _write_part(
    path: Path,
    captions: Sequence[str],
    encode: Encode,
    batch_size: int,
    report: Callable[[int], None],
) -> None:
    embeddings, masks = [], []
    for start in range(0, len(captions), batch_size):
        embedding, mask = encode(captions[start : start + batch_size])
        with np.errstate(over="ignore"):
            short = np.asarray(embedding).astype(np.float16)
        if not np.isfinite(short).all():
            raise UserError(
                f"the encoder's embeddings of captions {start} and on of {path} are "
                "not finite, or too large for float16: use an encoder in float32"
            )
        embeddings.append(short)
        masks.append(np.asarray(mask, bool))
        report(start + len(short))
    embedding, mask = np.concatenate(embeddings), np.concatenate(masks)
    with written_aside(path) as aside:
        aside.write_bytes(save({"embedding": embedding, "mask": mask}))


def _is_whole(path: Path, number: int) -> bool:
    """Whether the file is there with so many captions."""
    try:
        part = load_file(path)
        return len(part["embedding"]) == len(part["mask"]) == number
    except (OSError, KeyError, SafetensorError):
        return False


def read_parts(paths: Sequence[Path]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Embedding [length, width] and mask [length] of each caption, in order.

    Raises UserError when parts differ in shape, as those of two encoders do.
    """
    shape = None
    for path in paths:
        part = load_file(path)
        embeddings, masks = part["embedding"], part["mask"]
        if shape not in (None, embeddings.shape[1:]):
            raise UserError(
                f"{path} holds embeddings of shape {embeddings.shape[1:]}, but those "
                f"before it have {shape}: delete {path.parent} and make them again"
            )
        shape = embeddings.shape[1:]
        yield from zip(embeddings, masks, strict=True)


def write_dataset(
    name: str,
    directory: Path,
    source: tfds.core.DatasetBuilder,
    caption_key: str,
    image_key: str,
    parts: Mapping[str, Sequence[Path]],
) -> Path:
    """The folder of a TFDS dataset with `image`, `caption`, `embedding` and
    `embedding_mask`, in the order of the source; made where it is not there yet.

    Raises UserError when it cannot be written.
    """
    _, (embedding, _) = next(enumerate(read_parts(next(iter(parts.values())))))
    length, width = embedding.shape
    features = {
        "image": source.info.features[image_key],
        "caption": tfds.features.Text(),
        "embedding": tfds.features.Tensor(shape=(length, width), dtype=np.float16),
        "embedding_mask": tfds.features.Tensor(shape=(length,), dtype=np.bool_),
    }

    def info(self: Any) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{source.info.full_name} with embeddings of its captions.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # TFDS shuffles large datasets with TensorFlow
        )

    def generate(self: Any, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        records = open_records(source, split)
        rows = zip(records, read_parts(parts[split]), strict=True)
        for index, (record, (embedding, mask)) in enumerate(rows):
            yield (
                index,
                {
                    "image": record[image_key],
                    "caption": record[caption_key],
                    "embedding": embedding,
                    "embedding_mask": mask,
                },
            )

    methods = {
        "VERSION": tfds.core.Version("1.0.0"),
        "name": name,
        "_info": info,
        "_generate_examples": generate,
        "_split_generators": lambda self, _: {
            split: self._generate_examples(split) for split in parts
        },
    }
    with tfds.core.registered.skip_registration():
        made = type("Embedded", (tfds.core.GeneratorBasedBuilder,), methods)
    try:
        builder = made(data_dir=str(directory), file_format="array_record")
        builder.download_and_prepare()
    except OSError as error:
        raise UserError(
            f"dataset {name!r} cannot be written to {directory}: {error}"
        ) from error
    return Path(builder.data_path)


def open_records(source: tfds.core.DatasetBuilder, split: str) -> Any:
    """The records of a split, images as the bytes of their files."""
    decoders = {
        key: tfds.decode.SkipDecoding()
        for key, feature in source.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return source.as_data_source(split, decoders=decoders)


def transformers_encoder(name: str, length: int) -> Encode:
    """A text encoder of `transformers` (T5, CLIP ..), by its name there or its folder.

    Raises UserError when the package, or the model, is not there.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "embeddings need the package transformers and torch: pip install "
            "'multistep_cm[embed]'"
        ) from error
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        is_clip = config.model_type in ("clip", "clip_text_model")
        kind = "CLIPTextModel" if is_clip else "AutoModelForTextEncoding"
        model = getattr(transformers, kind).from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--encoder is {name!r}, which transformers cannot open: {reason}"
        ) from error
    model.eval().requires_grad_(False)

    def encode(captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        tokens = tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        mask = tokens["attention_mask"]
        states = model(input_ids=tokens["input_ids"], attention_mask=mask)
        return states.last_hidden_state.float().numpy(), mask.bool().numpy()

    return encode
