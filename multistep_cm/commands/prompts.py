"""Prompts of a command line, and what a model of captions makes images of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from multistep_cm.errors import UserError

if TYPE_CHECKING:  # `--help` does not wait for JAX
    from ml_collections import ConfigDict


def read_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """Those given one by one, then the lines of a file that are not empty.

    Raises UserError for a file that cannot be read or holds none.
    """
    found = list(prompts)
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--prompts_file is {file}, which cannot be read as UTF-8 text: {error}"
            ) from error
        written = [line.strip() for line in lines if line.strip()]
        if not written:
            raise UserError(
                f"--prompts_file is {file}, which holds no prompt: expected one a line"
            )
        found += written
    return found


def encode_prompts(
    prompts: Sequence[str], num_images: int, data: "ConfigDict"
) -> tuple[Mapping[str, np.ndarray], str]:
    """`label`, `text` and `text_mask` of as many images, prompts in turn; a warning.

    The warning counts the prompts that were cut; it is empty when none was. Raises
    UserError for a model that does not read text.
    """
    from multistep_cm.data.captions import CutCounter, encode_bytes

    if data.text == "none":
        raise UserError(
            f"--prompt is {prompts[0]!r}, but the model was trained without captions "
            "(data.text = none): expected --labels, or a model that reads captions"
        )
    if data.text != "bytes":
        raise UserError(
            f"--prompt is {prompts[0]!r}, but the model reads precomputed embeddings "
            "and no text: without prompts it draws the captions of the evaluation split"
        )
    arrays, num_cut = encode_bytes(prompts, data.text_length)
    counter = CutCounter("--prompt", data.text_length, lambda _: None)
    counter.add(num_cut)
    rows = np.arange(num_images) % len(prompts)
    wanted = {key: value[rows] for key, value in arrays.items()}
    wanted["label"] = np.zeros(num_images, np.int32)
    return wanted, counter.sentence() if num_cut else ""


def decode_prompts(wanted: Mapping[str, np.ndarray]) -> list[str]:
    """The text of bytes in `text` under `text_mask`, one for each image."""
    rows = zip(wanted["text"], wanted["text_mask"], strict=True)
    return [row[mask].tobytes().decode(errors="replace") for row, mask in rows]
