"""What all processes must agree on before they compute together.

A process that fails alone leaves the others waiting in a collective. So what can fail
or differ is said to all, and all end with a sentence. In one process alone these
functions do nothing but call what they are given.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from multistep_cm.errors import UserError
from multistep_cm.sharding.distributed import is_main_process

T = TypeVar("T")

LONGEST_WAIT = 24 * 3600
"""Seconds; whoever dies meanwhile is noticed by the heartbeat."""


def has_others() -> bool:
    """Whether there are other processes; touches no device where there are none."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def wait_for_all(what: str) -> None:
    """Return when every process has come here, naming the same thing.

    For after long work of unequal length, such as compiling (one process may find the
    program in its cache): collectives wait for each other half a minute at most when
    they first meet on CPU.
    """
    if has_others():
        wait = multihost.get_barrier_sync_fn()
        wait(key=what, timeout_ms=LONGEST_WAIT * 1000)


def gather_text(text: str) -> list[str]:
    """The text of every process, in their order; every process must call it."""
    if not has_others():
        return [text]
    wait_for_all("gather_text")
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    if not lengths.any():
        return [""] * len(lengths)
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [
        bytes(row[:length]).decode()
        for row, length in zip(rows, lengths.tolist(), strict=True)
    ]


def together(check: Callable[[], T]) -> T:
    """What `check` returns here; UserError in every process if it raised one in any.

    `check` must not compute with other processes.
    """
    if not has_others():
        return check()
    error: UserError | None = None
    results: list[T] = []
    try:
        results.append(check())
    except UserError as raised:
        error = raised
    said = gather_text("" if error is None else str(error))
    if error is not None:
        raise error
    for index, sentence in enumerate(said):
        if sentence:
            raise UserError(f"process {index}: {sentence}")
    return results[0]


def main_first(check: Callable[[], T]) -> T:
    """The same, in process 0 before the others: it writes what they then find."""
    if not has_others():
        return check()
    is_main = is_main_process()
    results = together(lambda: [check()] if is_main else [])
    results += together(lambda: [] if is_main else [check()])
    return results[0]


def check_same(values: Mapping[str, Any], remedy: str) -> None:
    """Raise UserError, in every process, unless all hold the same values.

    The sentence names the first that differs, what two processes hold, and `remedy`.
    """
    if not has_others():
        return
    mine = {key: repr(value) for key, value in values.items()}
    held = [json.loads(text) for text in gather_text(json.dumps(mine))]
    for index, other in enumerate(held):
        for key in sorted(held[0].keys() | other.keys()):
            first, here = held[0].get(key, "absent"), other.get(key, "absent")
            if first != here:
                raise UserError(
                    f"{key} is {first} in process 0 and {here} in process {index}: "
                    f"{remedy}"
                )
