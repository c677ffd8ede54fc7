"""TensorBoard's event files, written without TensorFlow and without a thread.

tensorboardX's own writer hands events to a thread. When that one dies, on a full disk
say, its queue fills up and the train loop waits for it forever. Here an event is with
the system when the call returns, or the call raises OSError.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

FORMAT = "brain.Event:2"
"""What TensorBoard expects the first event of a file to name."""


class TensorBoardWriter:
    """A new event file in a folder."""

    def __init__(self, directory: str | Path, resume_step: int | None = None) -> None:
        """Opens the file; the folder is made if missing.

        With `resume_step`, TensorBoard is told to hide what older files hold of later
        steps. Raises OSError.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # The process tells apart two runs that start in the same second.
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        path = directory / f"events.out.tfevents.{name}"
        self._file = path.open("ab", buffering=0)
        self._add(event_pb2.Event(file_version=FORMAT))
        if resume_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(event_pb2.Event(step=resume_step + 1, session_log=start))

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """One curve a name."""
        for name, value in values.items():
            self._add_summary(step, summary.scalar(name, float(value)))

    def images(self, step: int, values: Mapping[str, Any]) -> None:
        """One picture a name."""
        for name, value in values.items():
            pixels = np.asarray(value)
            layout = "HW" if pixels.ndim == 2 else "HWC"
            self._add_summary(step, summary.image(name, pixels, dataformats=layout))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _add_summary(self, step: int, value: Any) -> None:
        self._add(event_pb2.Event(step=int(step), summary=value))

    def _add(self, event: Any) -> None:
        """Its length, the checksum of that, the event and its checksum."""
        event.wall_time = time.time()
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        record = length + next(sums) + data + next(sums)
        # One call to the system, so that a kill leaves whole events.
        written = self._file.write(record)
        if written != len(record):
            # A disk takes what fits; asked again, it says why no more.
            self._file.write(record[written:])
