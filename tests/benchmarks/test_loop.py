"""The benchmark of the train loop: in tiny form, and on clocks that are known."""

from pathlib import Path

import pytest

from benchmarks import loop
from tests.training.tiny import one_device, tiny_config


def test_time_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 11.0, 20.0, 23.0, 26.0])
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    step = loop.Timed(lambda *arguments: arguments)
    assert [step(n) for n in range(7)] == [(n,) for n in range(7)]
    # The first four are not counted: (26 - 20) / 2.
    assert step.seconds_per_step() == (3.0, 0.0)


def test_both_turns_take_the_same_steps(tmp_path: Path) -> None:
    steps = 2 * loop.WARM_UP
    config = tiny_config(training__num_steps=steps, checkpoint__every_steps=steps // 2)
    with one_device():
        cpu, wall = loop.measure(config, rounds=1)
    for seconds in (cpu, wall):
        assert list(seconds) == ["alone", "in the loop"]
        assert all(len(taken) == 1 and taken[0] > 0 for taken in seconds.values())


def test_what_the_loop_adds() -> None:
    cpu = {"alone": [0.1, 0.1, 0.2], "in the loop": [0.101, 0.102, 0.206]}
    wall = {"alone": [0.1, 0.1, 0.1], "in the loop": [0.1, 0.1, 0.1]}
    text = loop.table(cpu, wall)
    assert "adds 2.0% of CPU time, the median of 3 turns (1.0% .. 3.0%)" in text
    assert "0.0% of wall clock" in text


def test_too_few_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert loop.main(["--steps=3"]) == 1
    assert "--steps is 3, expected at least 8" in capsys.readouterr().err
