"""This process among others: who writes files, and whether it was told to stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_main_process() -> bool:
    """Whether this process writes pictures, logs and configs."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Print a line once, not once a process."""
    if is_main_process():
        print(text, flush=True)


def to_host(array: jax.Array) -> np.ndarray:
    """The whole array on this host, also when other processes hold parts of it."""
    if not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM into a question: yields `requested() -> bool`.

    The signal is remembered, also while a compilation or an evaluation runs, and the
    caller stops at the next point where nothing is lost. Signals can be caught in the
    main thread only; elsewhere the answer is always no.
    """
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    try:
        previous = signal.signal(signal.SIGTERM, remember)
    except ValueError:
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, previous)
