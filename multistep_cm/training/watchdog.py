"""A run that stands still says where, and ends.

A thread of its own looks whether steps are finished. It works while the main thread is
stuck in a device, a collective or a disk, all of which let other threads run. Behind it
stands the clock of `faulthandler`, in C, for what stops even this thread.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

STALLED = 3
"""The exit status: not 2, so that launchers start the run again."""

LAST_WORDS = 20.0
"""Seconds to write them; then the process ends without."""

OTHERS_FIRST = 3.0
"""Seconds that process 0 stays, because the others end at once when it does."""

STDERR = 2


class Watchdog:
    """Ends the process when nothing happens inside the context for `seconds`.

    Time in which this process itself was stopped (SIGSTOP, a suspended job) does not
    count, up to twice `seconds`.
    """

    def __init__(self, seconds: float, workdir: Path, process: int = 0) -> None:
        """`seconds` of 0 is no watchdog; `process` is the number among others."""
        self._seconds = seconds
        self._process = process
        self._file = workdir / f"stalled-{process}.txt"
        self._place = "before the first step"
        self._beats = 0
        self._pauses = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        if self._seconds:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self, place: str) -> None:
        """Something was finished; `place` is where the run is, such as "at step 3"."""
        self._place = place
        self._beats += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """For what may take any time, such as compiling."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self._beats += 1

    def _watch(self) -> None:
        tick = min(self._seconds / 10, 5.0)
        quiet, seen, before = 0.0, self._beats, time.monotonic()
        while not self._wait(tick):
            now = time.monotonic()
            # A tick that took much longer was one of a process that stood still.
            quiet += min(now - before, 2 * tick)
            before = now
            if self._beats != seen or self._pauses:
                quiet, seen = 0.0, self._beats
            elif quiet >= self._seconds:
                self._end()

    def _wait(self, tick: float) -> bool:
        faulthandler.dump_traceback_later(2 * self._seconds, exit=True, file=STDERR)
        return self._done.wait(tick)

    def _end(self) -> None:
        # Should the disk be what the run waits for.
        faulthandler.dump_traceback_later(LAST_WORDS, exit=True, file=STDERR)
        kept = f"the stacks of all threads are above and in {self._file}"
        faulthandler.dump_traceback(STDERR)
        try:
            with self._file.open("a") as file:
                self._write(file)
        except OSError as error:
            kept = f"the stacks of all threads are above ({self._file}: {error})"
        print(
            f"multistep-cm train: process {self._process} has finished nothing for "
            f"{self._seconds:g} s {self._place} (config key training.stall_timeout): "
            f"{kept}; the same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        if self._process == 0:
            time.sleep(OTHERS_FIRST)
        os._exit(STALLED)

    def _write(self, file: TextIO) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"{now}: nothing for {self._seconds:g} s {self._place}\n")
        file.flush()
        faulthandler.dump_traceback(file)
