"""Metric files of a run: `metrics.jsonl` and TensorBoard events.

`metrics.jsonl` holds one JSON object a line: `step` first, then the scalars of that
step. JSON has no NaN and no infinity, so those are written as the strings "nan",
"inf" and "-inf", which Python's `float` reads back.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from multistep_cm.errors import UserError
from multistep_cm.files import check_regular, reason, written_aside
from multistep_cm.reporting.events import TensorBoardWriter

METRICS_FILE = "metrics.jsonl"


class Writer(Protocol):
    """Takes the numbers and pictures of a run."""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers or 0-d arrays by name; a device array is waited for here."""

    def images(self, step: int, values: Mapping[str, Any]) -> None:
        """Pictures by name: Pillow images or uint8 [height, width, 1 or 3]."""

    def close(self) -> None:
        """Writes what is pending. The writer is not used afterwards."""


class JsonlWriter:
    """Appends one flushed line per `scalars` call; pictures are not for it."""

    def __init__(self, path: str | Path, resume_step: int | None = None) -> None:
        """Opens `path` for appending, after repair.

        A line that a crash left torn is dropped. With `resume_step`, lines of later
        steps are dropped too: the run that goes on will write them again. The repaired
        file replaces the old one by a rename, so a crash here loses nothing.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _repair(path, resume_step)
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes {"step": step, **values} and flushes."""
        row: dict[str, Any] = {"step": int(step)}
        row.update((name, _json_number(value)) for name, value in values.items())
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def images(self, step: int, values: Mapping[str, Any]) -> None:
        """Does nothing: pictures have no place in a line of JSON."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class FanOut:
    """Hands everything to each of several writers; with none, it drops it.

    Raises UserError when one cannot write, as on a full disk.
    """

    def __init__(self, writers: Sequence[Writer], name: str = "a file") -> None:
        """`name` says where to they write."""
        self._writers = tuple(writers)
        self._name = name

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """See `Writer.scalars`."""
        with self._told():
            for writer in self._writers:
                writer.scalars(step, values)

    def images(self, step: int, values: Mapping[str, Any]) -> None:
        """See `Writer.images`."""
        with self._told():
            for writer in self._writers:
                writer.images(step, values)

    def close(self) -> None:
        """See `Writer.close`. Closes all, whatever one of them raises."""
        with self._told(), contextlib.ExitStack() as stack:
            for writer in self._writers:
                stack.callback(writer.close)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"metrics cannot be written to {self._name} ({reason(error)}): mend "
                "the disk, and the same command goes on from the last checkpoint"
            ) from error


def open_writer(
    workdir: str | Path, resume_step: int | None = None, enabled: bool = True
) -> Writer:
    """A writer to `workdir`/metrics.jsonl and to TensorBoard events in `workdir`.

    Args:
      workdir: folder of the run; made if missing.
      resume_step: the step that the run goes on from. Rows of later steps are
        dropped. None keeps every row.
      enabled: False gives a writer that drops everything, for processes other than 0.

    Raises:
      UserError: the folder cannot be written.
    """
    if not enabled:
        return FanOut(())
    try:
        return FanOut(
            (
                JsonlWriter(Path(workdir) / METRICS_FILE, resume_step),
                TensorBoardWriter(workdir, resume_step),
            ),
            str(workdir),
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot write metrics to {workdir} ({error}); name a writable workdir"
        ) from error


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, in the order of the file.

    Lines that are not a JSON object with an integer `step` are left out: a running
    or killed writer may have left one torn. Raises OSError, and ValueError for a folder
    or a pipe in the place of the file.
    """
    check_regular(Path(path))
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    rows = (_parse(line) for line in text.splitlines())
    return [row for row in rows if row is not None]


def _repair(path: Path, resume_step: int | None) -> None:
    rows = read_jsonl(path)
    old = path.read_bytes()
    kept = [row for row in rows if resume_step is None or row["step"] <= resume_step]
    new = "".join(json.dumps(row) + "\n" for row in kept).encode()
    if new == old:
        return
    with written_aside(path) as aside:
        aside.write_bytes(new)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(row, dict) and type(step := row.get("step")) is int:
        return row if 0 <= step < 2**63 else None
    return None


def _json_number(value: Any) -> int | float | str:
    number = np.asarray(value).item()
    if isinstance(number, float) and not math.isfinite(number):
        return str(number)
    if isinstance(number, (bool, int, float)):
        return number
    raise TypeError(f"a scalar must be a number, not {value!r}")
