"""The benchmark of the train loop: in tiny form, and on clocks that are known."""

from typing import Any

import pytest

from benchmarks import loop
from multistep_cm.checkpoints import Checkpoints
from tests.training.tiny import one_device, tiny_config


def test_time_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 11.0, 20.0, 23.0, 26.0])
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    step = loop.Timed(lambda *arguments: arguments)
    assert [step(n) for n in range(7)] == [(n,) for n in range(7)]
    # The first four are not counted: (26 - 20) / 2.
    assert step.seconds_per_step() == (3.0, 0.0)


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
        cpu, wall = loop.measure(config, rounds=1)
    for seconds in (cpu, wall):
        assert list(seconds) == [loop.ALONE, loop.LOOP, loop.SAVING]
        assert all(len(taken) == 1 and taken[0] > 0 for taken in seconds.values())
    # The second turn, then the third: one more in the middle.
    assert saved == [0, steps, 0, steps // 2, steps]


def test_what_the_loop_adds() -> None:
    cpu = {loop.ALONE: [0.1, 0.1, 0.2], loop.LOOP: [0.101, 0.102, 0.206]}
    cpu[loop.SAVING] = [0.111, 0.122, 0.236]
    wall = {name: [0.1, 0.1, 0.1] for name in cpu}
    # 100 steps count: 1 to 3 CPU-seconds, with the 500 steps between two worth 50.
    text = loop.table(cpu, wall, 101 + loop.WARM_UP, 500)
    assert "adds 2.0% of CPU time, the median of 3 turns (1.0% .. 3.0%)" in text
    assert "0.0% of wall clock." in text
    assert "adds 2.0 CPU-seconds (1.0 .. 3.0) and 0.0 s of wall clock" in text
    assert "every 500 steps, as the config has it, 4.0% of CPU time more" in text


def test_too_few_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert loop.main(["--steps=3"]) == 1
    assert "--steps is 3, expected at least 8" in capsys.readouterr().err
