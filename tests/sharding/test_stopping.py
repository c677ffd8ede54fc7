"""The first SIGTERM, the second, and a main thread that cannot listen."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multistep_cm.sharding import stopping
from multistep_cm.sharding.stopping import BY_SIGTERM, Stopped, Stopping

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_becomes_a_question_and_its_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stopping("never said") as stops:
        assert not stops.requested()
        kill_me()
        assert stops.requested()
        kill_me()  # at the same time: it is the same signal, sent twice
        assert stops.requested()
    assert signal.getsignal(signal.SIGTERM) is before


def test_each_use_starts_unasked() -> None:
    with Stopping("never said") as stops:
        assert not stops.requested()
        kill_me()
    with Stopping("never said") as stops:
        assert not stops.requested()


def test_before_the_first_question_the_block_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reached = []
    with Stopping("what is kept") as stops:
        try:
            kill_me()
            reached.append("behind")
        finally:
            reached.append("tidied up")
    assert reached == ["tidied up"]
    assert stops.status == BY_SIGTERM == 143
    assert capsys.readouterr().err == "what is kept\n"


def test_what_swallows_the_interruption_ends_at_the_question() -> None:
    with Stopping("ended") as stops:
        with contextlib.suppress(Stopped):
            kill_me()
        stops.requested()
        raise AssertionError("it went on")


def test_in_a_thread_nothing_is_caught() -> None:
    answers = []

    def work() -> None:
        with Stopping("never said") as stops:
            answers.append(stops.requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]


BLOCK = """
import ctypes, threading, time
from multistep_cm.sharding.stopping import Stopping

def stuck():
    mutex, c = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    c.pthread_mutex_lock(mutex)
    c.pthread_mutex_lock(mutex)  # never returns, and no signal wakes it

with Stopping("kept", status={status}) as stops:
    {first}
    threading.Timer(0.5, print, ["ready"]).start()  # when the next line waits
    {wait}
print("came back")
"""


@contextlib.contextmanager
def program(
    first: str, wait: str, status: int = BY_SIGTERM
) -> Iterator[subprocess.Popen[str]]:
    """A process that waits in such a block."""
    script = BLOCK.format(first=first, wait=wait, status=status)
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("status", "stream"), [(BY_SIGTERM, 1), (0, 0)])
def test_what_is_in_c_is_not_waited_for(status: int, stream: int) -> None:
    """As in a compilation: the main thread does not come back to Python."""
    with program("pass", "stuck()", status) as process:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=PATIENCE)
    assert process.returncode == status
    assert said[stream] == "kept\n"
    assert not said[1 - stream]


@pytest.mark.parametrize(
    ("wait", "status"),
    [("time.sleep(1000)", -signal.SIGTERM), ("stuck()", BY_SIGTERM)],
    ids=["python", "c"],
)
def test_a_second_signal_ends_what_has_begun(wait: str, status: int) -> None:
    with program("stops.requested()", wait) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(stopping.GRACE + 0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=PATIENCE)
    assert process.returncode == status
    assert said == ("", "")


class Store:
    """The coordinator's key-value store, in memory."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.changed = threading.Condition()

    def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None:
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        with self.changed:
            self.changed.wait_for(lambda: key in self.values, milliseconds / 1000)
            return self.values[key]


@pytest.mark.parametrize("asked", [(3, 5), (0, 1), (7, 7)])
def test_all_stop_at_the_first_question_that_none_has_asked(
    asked: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import jax

    store, names = Store(), threading.local()
    monkeypatch.setattr(jax, "process_count", lambda: len(asked))
    monkeypatch.setattr(jax, "process_index", lambda: names.index)
    processes = [Stopping("never said") for _ in asked]
    for process, number in zip(processes, asked, strict=True):
        assert not any(process.requested() for _ in range(number))

    def agree(index: int) -> None:
        names.index = index
        processes[index]._agree(store)

    threads = [threading.Thread(target=agree, args=(n,)) for n in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stops_at = []
    for process, number in zip(processes, asked, strict=True):
        answers: Callable[[], bool] = process.requested
        more = next(n for n in range(1, 100) if answers())
        stops_at.append(number + more)
    assert stops_at == [max(asked) + 1] * len(asked)
