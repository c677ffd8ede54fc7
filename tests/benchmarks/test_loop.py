"""The benchmark of the train loop: in tiny form, and on clocks that are known."""

import itertools
import threading
import time
from typing import Any

import pytest

from benchmarks import loop
from multistep_cm.checkpoints import Checkpoints
from tests.training.tiny import one_device, tiny_config


def test_time_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 11.0, 20.0, 23.0, 26.0])
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    # Each call of the step takes 1 of the 3 that the Python threads work meanwhile.
    python, thread = itertools.count(0.0, 3.0), itertools.count(0.0, 1.0)
    monkeypatch.setattr(loop, "python_seconds", lambda: {1: next(python)})
    monkeypatch.setattr("time.thread_time", lambda: next(thread))
    step = loop.Timed(lambda *arguments: arguments)
    assert [step(n) for n in range(7)] == [(n,) for n in range(7)]
    # The first four are not counted: (26 - 20) / 2.
    assert step.seconds_per_step() == (3.0, 0.0, 2.0)


def test_the_work_of_other_threads_is_counted() -> None:
    done, leave = threading.Event(), threading.Event()

    def other() -> None:
        while time.thread_time() < 0.2:
            pass
        done.set()
        leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    assert thread.native_id is not None
    done.wait()
    seconds = loop.python_seconds()
    leave.set()
    thread.join()
    assert seconds[thread.native_id] >= 0.2
    assert threading.get_native_id() in seconds
    assert thread.native_id not in loop.python_seconds()


def test_all_turns_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 2 * loop.WARM_UP
    config = tiny_config(training__num_steps=steps)
    saved: list[int] = []
    save = Checkpoints.save

    def counting(self: Checkpoints, step: int, *rest: Any) -> None:
        saved.append(step)
        save(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", counting)
    with one_device():
        taken = loop.measure(config, rounds=1)
    assert list(taken) == [loop.ALONE, loop.LOOP, loop.SAVING]
    for (seconds,) in taken.values():
        assert 0 < seconds.host < seconds.cpu
        assert seconds.wall > 0
    # The second turn, then the third: one more in the middle.
    assert saved == [0, steps, 0, steps // 2, steps]


def test_what_the_loop_adds() -> None:
    def turns(*cpu: float) -> list[loop.Taken]:
        return [loop.Taken(seconds, 0.1, 0.001) for seconds in cpu]

    taken = {loop.ALONE: turns(0.1, 0.1, 0.2), loop.LOOP: turns(0.101, 0.102, 0.206)}
    taken[loop.SAVING] = turns(0.111, 0.122, 0.236)
    # 100 steps count: 1 to 3 CPU-seconds, with the 500 steps between two worth 50.
    text = loop.table(taken, 101 + loop.WARM_UP, 500)
    assert "the host works 1.00 CPU-ms, 1.00% of it, the median of 3 turns (0.5" in text
    assert "adds 2.0% of CPU time, the median of 3 turns (1.0% .. 3.0%)" in text
    assert "0.0% of wall clock." in text
    assert "adds 2.0 CPU-seconds (1.0 .. 3.0) and 0.0 s of wall clock" in text
    assert "every 500 steps, as the config has it, 4.0% of CPU time more" in text


def test_too_few_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert loop.main(["--steps=3"]) == 1
    assert "--steps is 3, expected at least 8" in capsys.readouterr().err
