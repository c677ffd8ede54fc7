"""Captions as arrays: UTF-8 bytes, or embeddings that were made offline."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from multistep_cm.errors import UserError

Arrays = dict[str, np.ndarray]


def encode_bytes(captions: Sequence[str], length: int) -> tuple[Arrays, int]:
    """`text` uint8 [N, length] and `text_mask` bool [N, length]; how many were cut.

    An empty caption is all masked, as "no caption" is. A caption is cut between
    characters.
    """
    text = np.zeros((len(captions), length), np.uint8)
    mask = np.zeros((len(captions), length), np.bool_)
    num_cut = 0
    for row, caption in enumerate(captions):
        encoded = caption.encode()
        if len(encoded) > length:
            num_cut += 1
            encoded = encoded[:length].decode(errors="ignore").encode()
        text[row, : len(encoded)] = np.frombuffer(encoded, np.uint8)
        mask[row, : len(encoded)] = True
    return {"text": text, "text_mask": mask}, num_cut


def empty_arrays(data: ConfigDict, number: int) -> Arrays:
    """So many times "no caption", as `data.*` wants captions; {} if it wants none."""
    if data.text == "none":
        return {}
    shape: tuple[int, ...] = (number, data.text_length)
    mask = np.zeros(shape, np.bool_)
    if data.text == "bytes":
        return {"text": np.zeros(shape, np.uint8), "text_mask": mask}
    return {
        "text": np.zeros((*shape, data.text_width), np.float16),
        "text_mask": mask,
    }


class CutCounter:
    """Counts captions that were cut, and says so at the 1st, 10th, 100th and so on.

    Args:
      where: whose captions, for the sentence.
      length: to how many bytes.
      report: is told; safe to use in threads.
    """

    def __init__(self, where: str, length: int, report: Callable[[str], None]) -> None:
        self.number = 0
        self._where = where
        self._length = length
        self._report = report
        self._next = 1
        self._lock = threading.Lock()

    def add(self, number: int) -> None:
        """So many more captions were cut."""
        with self._lock:
            self.number += number
            is_due = number > 0 and self.number >= self._next
            while self._next <= self.number:
                self._next *= 10
        if is_due:
            self._report(self.sentence())

    def sentence(self) -> str:
        """How many so far, and what to do."""
        captions = "caption was" if self.number == 1 else "captions were"
        return (
            f"warning: {self.number} {captions} longer than {self._length} bytes and "
            f"cut ({self._where}): raise data.text_length to read all of them"
        )


def read_caption(record: Mapping[str, Any], data: ConfigDict, name: str) -> Arrays:
    """One record's `text` and `text_mask` as float16 and bool, of embeddings.

    Raises UserError, naming the example, for embeddings that are not finite.
    """
    text = np.asarray(record[data.text_key])
    with np.errstate(over="ignore"):
        short = text.astype(np.float16)
    if not np.isfinite(short).all():
        raise UserError(
            f"{name} holds embeddings that are not finite, or too large for float16, "
            f"in {data.text_key!r}: make them again"
        )
    return {"text": short, "text_mask": np.asarray(record[data.text_mask_key], bool)}
