"""Records that cannot be decoded: named, counted, and passed over if so configured.

In the place of such a record stands the next good one in the source's order, so what
an index holds is a function of the files alone: resumed runs, caches and any number of
processes find the same.
"""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from multistep_cm.errors import UserError

if TYPE_CHECKING:
    from multistep_cm.data.sources import Batch, Source

KEY = "data.bad_record_fraction"


class BadRecordError(UserError):
    """A record that is there and cannot be decoded; `index` is that in its source."""

    def __init__(self, index: int, name: str, reason: object) -> None:
        self.index = index
        self.what = f"{name} cannot be read: {reason}"
        super().__init__(
            f"{self.what}; replace it, or let such records be passed over with "
            f"--config.{KEY}=0.01 (up to one in a hundred)"
        )


class TolerantSource:
    """A source in which the next good record stands in the place of a bad one.

    A file that cannot be opened is no bad record: it may be there the next time, and
    then the batches would be others.

    Args:
      source: what is read; it raises BadRecordError.
      fraction: more bad records than this part of the source are an error.
      report: is told of each bad record, once, in a line.
    """

    def __init__(
        self, source: "Source", fraction: float, report: Callable[[str], None]
    ) -> None:
        self.source = source
        self.name = source.name
        self.split = source.split
        self.fingerprint = source.fingerprint
        self._fraction = fraction
        self._report = report
        self._bad: set[int] = set()
        self._lock = threading.Lock()  # batches are made in threads

    @property
    def num_bad(self) -> int:
        """Bad records that this process has met."""
        return len(self._bad)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> "Batch":
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return {key: value[0] for key, value in self.read(np.array([index])).items()}

    def read(self, indices: np.ndarray) -> "Batch":
        """As of the source; UserError when too many records are bad."""
        while True:
            try:
                return self.source.read(self._good(indices))
            except BadRecordError as error:
                self._add(error)

    def _good(self, indices: np.ndarray) -> np.ndarray:
        """The indices, each moved on over the records that are known to be bad."""
        with self._lock:
            moved = indices.copy()
            for row in np.flatnonzero(np.isin(indices, [*self._bad])):
                while moved[row] in self._bad:
                    moved[row] = (moved[row] + 1) % len(self)
            return moved

    def _add(self, error: BadRecordError) -> None:
        with self._lock:
            if error.index in self._bad:
                return  # another thread has met it
            number = len(self._bad) + 1
            if number > self._fraction * len(self):
                raise UserError(
                    f"{error.what}; with it {number} of {len(self)} records of split "
                    f"{self.split!r} are bad, more than {KEY} = {self._fraction:g} "
                    "allows: prepare the data again, or raise that key"
                ) from error
            self._bad.add(error.index)
        self._report(f"passed over, bad record {number} of this process: {error.what}")
