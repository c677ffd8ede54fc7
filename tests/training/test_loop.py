"""The loop on the smallest network: files, signals, divergence, order of work."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from multistep_cm.checkpoints import Checkpoints
from multistep_cm.errors import UserError
from multistep_cm.reporting.metrics import FanOut, read_jsonl
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import loop, setup
from multistep_cm.training.loop import TrainingDivergedError, train
from multistep_cm.training.state import TrainState
from tests.training.tiny import MLP, assert_trees_equal, one_device, tiny_config

AroundStep = Callable[[int, Callable[[], tuple[Any, Any]]], tuple[Any, Any]]


@pytest.fixture(autouse=True, scope="module")
def single() -> Iterator[None]:
    """Of the devices, one: what several compute is tests/sharding's matter."""
    with one_device():
        yield


def steps_on_disk(workdir: Path) -> set[int]:
    return {int(path.name) for path in (workdir / "checkpoints").iterdir()}


def final_state(config: ConfigDict, workdir: Path) -> TrainState:
    mesh = make_mesh(config.mesh)
    with Checkpoints(workdir) as checkpoints:
        found = setup.restore_state(checkpoints, config, mesh)
    assert found is not None
    return found[0]


@pytest.fixture
def around_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[AroundStep], None]:
    """Put a function around every call of the compiled step."""
    build = setup.build_step

    def install(around: AroundStep) -> None:
        def build_step(*arguments: Any) -> Any:
            compiled, calls = build(*arguments), iter(range(1, 1000))

            def call(state: Any, batch: Any, frozen: Any) -> Any:
                return around(next(calls), lambda: compiled(state, batch, frozen))

            return call

        monkeypatch.setattr(setup, "build_step", build_step)

    return install


def test_a_finished_run_holds_what_explains_it(teacher_workdir: Path) -> None:
    names = {path.name for path in teacher_workdir.iterdir()}
    assert {"checkpoints", "config.json", "metrics.jsonl", "parameters.txt"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert json.loads((teacher_workdir / "config.json").read_text())["seed"] == 0
    # Steps 0, 4 and 8 were saved, two are kept.
    assert steps_on_disk(teacher_workdir) == {4, 8}


def test_metrics_are_complete(teacher_workdir: Path) -> None:
    rows = read_jsonl(teacher_workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    for row in rows:
        assert np.isfinite(row["loss"])
        assert row["grad_norm"] > 0
        assert any(key.startswith("loss_t/") for key in row)
    expected = [1e-3 * 0.5 * (1 + np.cos(np.pi * (s - 3) / 6)) for s in (4, 6, 8)]
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, [1e-3, *expected], rtol=1e-5)


def never(*arguments: Any) -> Any:
    raise AssertionError("the step was compiled")


def test_nothing_is_trained_twice(
    teacher_workdir: Path,
    digits_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = shutil.copytree(teacher_workdir, tmp_path / "copy")
    monkeypatch.setattr(setup, "build_step", never)
    before = (workdir / "metrics.jsonl").read_text()
    assert train(tiny_config(digits_directory), workdir)
    assert "nothing to train: step 8 of 8 is done" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_text() == before


def test_sigterm_saves_and_the_same_command_continues(
    teacher_workdir: Path,
    digits_directory: Path,
    tmp_path: Path,
    around_step: Callable[[AroundStep], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(digits_directory)

    def stop_in_third(number: int, step: Callable[[], Any]) -> Any:
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step()

    around_step(stop_in_third)
    assert not train(config, tmp_path)
    said = capsys.readouterr().out
    assert "stopped by SIGTERM at step 3: saved; the same command continues" in said
    assert 3 in steps_on_disk(tmp_path)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [2, 3]
    # Now it stops again, in the sixth step, and then not any more.
    assert not train(config, tmp_path)
    assert train(config, tmp_path)
    assert "resumed" in capsys.readouterr().out
    whole, pieces = final_state(config, teacher_workdir), final_state(config, tmp_path)
    assert_trees_equal(pieces, whole)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 8]
    last = read_jsonl(teacher_workdir / "metrics.jsonl")[-1]
    assert rows[-1]["loss"] == last["loss"]


def test_sigterm_before_the_first_step_ends_the_run_at_once(
    digits_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def build_step(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not noticed")

    monkeypatch.setattr(setup, "build_step", build_step)
    assert not train(tiny_config(digits_directory), tmp_path)
    said = capsys.readouterr().out
    assert "stopped by SIGTERM before a step was made" in said
    assert not steps_on_disk(tmp_path)


def with_metrics(result: tuple[Any, Any], **values: float) -> tuple[Any, Any]:
    state, metrics = result
    return state, {**metrics, **{k: jnp.float32(v) for k, v in values.items()}}


@pytest.mark.parametrize(("name", "value"), [("loss", np.nan), ("grad_norm", np.inf)])
def test_what_is_not_finite_stops_the_run(
    digits_directory: Path,
    tmp_path: Path,
    around_step: Callable[[AroundStep], None],
    name: str,
    value: float,
) -> None:
    around_step(
        lambda number, step: (
            with_metrics(step(), **{name: value}) if number == 6 else step()
        )
    )
    with pytest.raises(TrainingDivergedError) as caught:
        train(tiny_config(digits_directory, **MLP), tmp_path)
    message = str(caught.value)
    assert "not finite at step 6" in message
    assert f"checkpoint is of step 4 in {tmp_path}" in message
    assert len(message.splitlines()) == 1
    assert max(steps_on_disk(tmp_path)) == 4
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4]


def test_an_absurd_learning_rate_is_noticed(
    digits_directory: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        digits_directory,
        training__learning_rate=1e30,
        training__warmup_steps=0,
        checkpoint__every_steps=1,
    )
    with pytest.raises(TrainingDivergedError, match="not finite at step") as caught:
        train(config, tmp_path)
    last = max(steps_on_disk(tmp_path))
    assert f"checkpoint is of step {last} " in str(caught.value)
    # What is on disk can be read, and is finite.
    state = final_state(config, tmp_path)
    assert int(state.step) == last
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_state_gone_wrong_is_not_saved(
    digits_directory: Path, tmp_path: Path, around_step: Callable[[AroundStep], None]
) -> None:
    def spoil(number: int, step: Callable[[], Any]) -> Any:
        state, metrics = step()
        if number == 4:
            state = state.replace(ema=jax.tree.map(lambda x: x / 0.0, state.ema))
        return state, metrics

    around_step(spoil)
    with pytest.raises(TrainingDivergedError, match=r"state \(.+\) is not finite"):
        train(tiny_config(digits_directory, **MLP), tmp_path)
    assert steps_on_disk(tmp_path) == {0}


@pytest.fixture
def several_steps_a_call(digits_directory: Path) -> ConfigDict:
    return tiny_config(digits_directory, training__steps_per_call=2)


def test_steps_in_one_call_train_the_same(
    teacher_workdir: Path, several_steps_a_call: ConfigDict, tmp_path: Path
) -> None:
    config = several_steps_a_call
    assert train(config, tmp_path)
    assert steps_on_disk(tmp_path) == {4, 8}
    single, stacked = (
        final_state(config, teacher_workdir),
        final_state(config, tmp_path),
    )
    assert int(stacked.step) == 8
    for a, b in zip(
        jax.tree.leaves(single.params), jax.tree.leaves(stacked.params), strict=True
    ):
        # Adam divides by the gradient: rounding shows as a share of the rate, 1e-3.
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-4)
    a, b = (
        [row["loss"] for row in read_jsonl(folder / "metrics.jsonl")]
        for folder in (teacher_workdir, tmp_path)
    )
    np.testing.assert_allclose(a, b, rtol=1e-3)


def test_the_step_within_a_call_is_named(
    several_steps_a_call: ConfigDict,
    tmp_path: Path,
    around_step: Callable[[AroundStep], None],
) -> None:
    def second_of_second(number: int, step: Callable[[], Any]) -> Any:
        state, metrics = step()
        if number == 2:
            metrics["loss"] = metrics["loss"].at[1].set(np.nan)
        return state, metrics

    around_step(second_of_second)
    with pytest.raises(TrainingDivergedError, match="not finite at step 4"):
        train(several_steps_a_call, tmp_path)


def test_calls_that_would_miss_the_last_step_are_refused(
    digits_directory: Path,
    tmp_path: Path,
    around_step: Callable[[AroundStep], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop_in_third(number: int, step: Callable[[], Any]) -> Any:
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step()

    around_step(stop_in_third)
    assert not train(tiny_config(digits_directory, **MLP), tmp_path)
    monkeypatch.setattr(setup, "build_step", never)
    config = tiny_config(digits_directory, **MLP, training__steps_per_call=2)
    with pytest.raises(UserError, match=r"steps_per_call is 2, .* from step 3"):
        train(config, tmp_path)


class Recorder:
    """A writer that notes how many steps were dispatched when a row came."""

    def __init__(self) -> None:
        self.dispatched = 0
        self.rows: list[tuple[int, int]] = []

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        self.rows.append((step, self.dispatched))

    def images(self, step: int, values: Mapping[str, Any]) -> None:
        raise AssertionError("no previews were asked for")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_metrics_come_one_interval_late_and_are_complete_at_the_end(
    digits_directory: Path,
    tmp_path: Path,
    around_step: Callable[[AroundStep], None],
    monkeypatch: pytest.MonkeyPatch,
    on_nan: str,
) -> None:
    recorder = Recorder()

    def count(number: int, step: Callable[[], Any]) -> Any:
        recorder.dispatched = number
        return step()

    around_step(count)
    monkeypatch.setattr(loop, "open_writer", lambda *_: FanOut([recorder]))
    config = tiny_config(
        digits_directory, **MLP, checkpoint__every_steps=100, training__on_nan=on_nan
    )
    assert train(config, tmp_path)
    assert recorder.rows == [(2, 4), (4, 6), (6, 8), (8, 8)]
    assert steps_on_disk(tmp_path) == {0, 8}


@pytest.fixture
def lowered() -> Iterator[list[str]]:
    """The events of programs that jax makes for compilation, while the test runs."""
    events: list[str] = []
    is_open = True

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if is_open and event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    is_open = False  # listeners cannot be taken off by public means


def test_a_student_compiles_once_and_transfers_nothing_by_itself(
    teacher_workdir: Path,
    digits_directory: Path,
    tmp_path: Path,
    around_step: Callable[[AroundStep], None],
    lowered: list[str],
) -> None:
    config = tiny_config(
        digits_directory, method="cd", teacher__workdir=str(teacher_workdir)
    )
    at_first_step = []

    def guard(number: int, step: Callable[[], Any]) -> Any:
        if number == 1:
            at_first_step.append(len(lowered))
            # From here on: batches, steps, metrics and checkpoints.
            jax.config.update("jax_transfer_guard", "disallow")
        return step()

    around_step(guard)
    try:
        assert train(config, tmp_path)
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    # The discretisation went from 4 to 16 teacher steps meanwhile.
    assert at_first_step[0] > 0
    assert len(lowered) == at_first_step[0]
    teacher = final_state(tiny_config(digits_directory), teacher_workdir)
    student = final_state(config, tmp_path)
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), teacher.ema, student.params
    )
    # It began at the teacher: eight steps of at most 1e-3 away.
    assert 0 < max(jax.tree.leaves(moved)) < 1e-2
