"""Steps that are not finite: skipped within a budget, or the end of the run."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from multistep_cm.checkpoints import Checkpoints
from multistep_cm.errors import UserError
from multistep_cm.inspection.runs import read_workdirs
from multistep_cm.losses.signature import Batch, Metrics, Params
from multistep_cm.reporting.metrics import read_jsonl
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.sharding.rules import place_abstract
from multistep_cm.training import methods, setup
from multistep_cm.training.finite import first_too_many
from multistep_cm.training.loop import TrainingDivergedError, train
from multistep_cm.training.optimizer import make_learning_rate, make_optimizer
from multistep_cm.training.state import TrainState, make_state
from multistep_cm.training.step import compile_step, make_train_step
from tests.training.tiny import MLP, assert_trees_equal, host, one_device, tiny_config

MESH = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
SKIP: dict[str, Any] = {"training__on_nan": "skip"}
GOOD, NAN, STEEP = 0.0, np.nan, 1e38
"""What a loss adds: nothing; NaN; nothing, with a gradient whose norm overflows."""


@pytest.fixture(autouse=True, scope="module")
def single() -> Iterator[None]:
    """Of the devices, one: what several compute is tests/sharding's matter."""
    with one_device():
        yield


def toy_loss(
    params: Params, batch: Batch, keys: jax.Array, step: jax.Array, frozen: Any
) -> tuple[jax.Array, Metrics]:
    """(w - mean pixel)^2, and what `frozen` adds at this step; no draws."""
    pixels = batch["image"].mean((1, 2, 3))
    w = params["w"].mean()
    moved = w - jax.lax.stop_gradient(w)
    losses = jnp.square(w - pixels) + frozen["added"][step] * moved
    return jnp.mean(losses), {"t": jnp.abs(pixels) % 1.0, "loss": losses}


def run(config: ConfigDict, added: list[float], pixels: list[int]) -> tuple[Any, Any]:
    """The state after a step on each of these pixels, and the metrics of each call."""
    optimizer, training = make_optimizer(config.training), config.training
    frozen = {"added": jnp.asarray(added, jnp.float32)}
    more = ("ema_0.5",)
    state = jax.jit(lambda p: make_state(p, optimizer, True, more))(
        {"w": jnp.full(2, 0.3)}
    )
    compiled = compile_step(
        make_train_step(toy_loss, optimizer, config, MESH),
        place_abstract(state, MESH),
        setup.abstract_batch(config, MESH),
        place_abstract(frozen, MESH),
        MESH,
    )
    rows, per_call = [], training.steps_per_call
    shapes = setup.abstract_batch(config, MESH)
    for call in range(0, len(pixels), per_call):
        now = jnp.asarray(pixels[call : call + per_call], jnp.uint8)
        image = shapes["image"].shape
        now = now.reshape(-1, 1, 1, 1, 1) if per_call > 1 else now
        batch = {
            "image": jnp.broadcast_to(now, image),
            "label": jnp.zeros(shapes["label"].shape, jnp.int32),
        }
        state, row = compiled(state, batch, frozen)
        rows.append(host(row))
    return host(state), rows


def toy_config(**values: Any) -> ConfigDict:
    return tiny_config(
        training__more_ema_decays=(0.5,),
        consistency__target_decay=0.5,
        consistency__teacher_steps_start=4.0,
        consistency__teacher_steps_end=4.0,
        **values,
    )


@pytest.mark.parametrize("bad", [NAN, STEEP], ids=["loss", "gradient"])
@pytest.mark.parametrize(
    "shape",
    [{}, {"training__accumulation": 2}, {"training__steps_per_call": 2}],
    ids=["plain", "accumulation", "steps_per_call"],
)
def test_a_skipped_step_changes_nothing_but_the_counts(
    bad: float, shape: dict[str, Any]
) -> None:
    """Six steps of which two are bad end where the four others alone do."""
    config = toy_config(**SKIP, **shape)
    added = [GOOD, bad, GOOD, bad, GOOD, GOOD]
    state, rows = run(config, added, [200, 10, 120, 20, 90, 30])
    clean, _ = run(config, [GOOD] * 6, [200, 120, 90, 30])
    assert (state.step, state.skipped) == (6, 2)
    assert (clean.step, clean.skipped) == (4, 0)
    same = {"step": clean.step, "skipped": clean.skipped}
    assert_trees_equal(state.replace(**same), clean)
    assert np.all(state.params["w"] != np.float32(0.3))
    count = np.concatenate([np.atleast_1d(row["skipped_steps"]) for row in rows])
    assert count.tolist() == [0, 1, 1, 2, 2, 2]
    # The rate that is logged is that of the update: skipped steps do not count.
    rates = np.concatenate([np.atleast_1d(row["learning_rate"]) for row in rows])
    schedule = make_learning_rate(config.training)
    expected = [float(schedule(k)) for k in (0, 1, 1, 2, 2, 3)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def lowered(config: ConfigDict) -> tuple[str, Any]:
    """The program's text before compilation, and the compiled program's memory."""
    optimizer = optax.adam(1e-2)
    state = jax.eval_shape(
        lambda p: make_state(p, optimizer, True, ("ema_0.5",)),
        {"w": jax.ShapeDtypeStruct((64, 64), jnp.float32)},
    )

    def loss(params: Params, batch: Batch, keys: Any, step: Any, frozen: Any) -> Any:
        losses = jnp.square(params["w"]).mean() + batch["image"].mean((1, 2, 3))
        return losses.mean(), {"t": losses * 0, "loss": losses}

    step = make_train_step(loss, optimizer, config, MESH)
    batch = setup.abstract_batch(config, MESH)
    text = jax.jit(step).lower(state, batch, {}).as_text()
    compiled = compile_step(step, place_abstract(state, MESH), batch, {}, MESH)
    return text, compiled.memory_analysis()


def test_stopping_costs_nothing_and_skipping_donates_all() -> None:
    """With `stop` the program asks for nothing finite; both reuse the whole state."""
    stop, stop_memory = lowered(toy_config())
    skip, skip_memory = lowered(toy_config(**SKIP))
    assert "is_finite" not in stop
    assert "is_finite" in skip
    # params, ema, one more, target, two moments; step, skipped and Adam's count.
    arrays = 6 * 64 * 64 * 4
    for memory in (stop_memory, skip_memory):
        assert arrays <= memory.alias_size_in_bytes <= arrays + 3 * 64


@pytest.mark.parametrize(
    ("on_nan", "count", "expected"),
    [
        ("stop", None, 1),
        ("skip", [1, 2, 2, 3], 3),
        ("skip", [0, 1, 1, 2], None),
        # A budget that was lowered: the first bad step is too many.
        ("skip", [8, 9, 9, 10], 1),
    ],
)
def test_the_first_step_that_is_too_many(
    on_nan: str, count: list[int] | None, expected: int | None
) -> None:
    config = tiny_config(training__on_nan=on_nan, training__max_skipped_steps=2)
    metrics = {"loss": np.array([1, np.nan, 1, 1]), "grad_norm": np.ones(4)}
    metrics["grad_norm"][3] = np.inf
    if count is not None:
        metrics["skipped_steps"] = np.array(count)
    assert first_too_many(metrics, config.training) == expected


BAD_STEPS = (2, 3, 6)
"""Those that the loss below spoils, counted from 1 as the loop does."""


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher's loss, but not a number at three steps."""
    method = methods.METHODS["denoising"]

    def make_loss(*arguments: Any) -> Any:
        loss = method.make_loss(*arguments)

        def spoil(
            params: Params, batch: Batch, keys: Any, step: Any, frozen: Any
        ) -> Any:
            value, metrics = loss(params, batch, keys, step, frozen)
            bad = (step + 1 == jnp.asarray(BAD_STEPS)).any()
            return value * jnp.where(bad, jnp.nan, 1.0), metrics

        return spoil

    changed = dataclasses.replace(method, make_loss=make_loss)
    monkeypatch.setitem(methods.METHODS, "denoising", changed)  # type: ignore[arg-type]


def mlp_config(directory: Path, **values: Any) -> ConfigDict:
    """A run whose network matters little."""
    return tiny_config(directory, **MLP, **values)


def final_state(config: ConfigDict, workdir: Path) -> TrainState:
    with Checkpoints(workdir) as checkpoints:
        found = setup.restore_state(checkpoints, config, make_mesh(config.mesh))
    assert found is not None
    return found[0]


@pytest.mark.usefixtures("spoiled")
def test_a_run_skips_within_its_budget_and_says_so(
    digits_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = mlp_config(
        digits_directory, **SKIP, training__max_skipped_steps=3, training__log_every=1
    )
    assert train(config, tmp_path)
    assert "skipped 3" in capsys.readouterr().err
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["skipped_steps"] for row in rows] == [0, 1, 2, 2, 2, 3, 3, 3]
    # A row has a loss unless all of its steps were skipped.
    assert [row["step"] for row in rows if "loss" not in row] == [*BAD_STEPS]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    state = final_state(config, tmp_path)
    assert (int(state.step), int(state.skipped)) == (8, 3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    (workdir,) = read_workdirs([tmp_path], {})
    assert workdir.run.facts["skipped steps"].startswith("3 ")


@pytest.mark.usefixtures("spoiled")
def test_the_budget_holds_across_a_resume(
    digits_directory: Path, tmp_path: Path
) -> None:
    def config(budget: int) -> ConfigDict:
        return mlp_config(digits_directory, **SKIP, training__max_skipped_steps=budget)

    # Steps 2 and 3 are within it, the sixth is not; when it goes on from step 4 the
    # two are still counted.
    for _ in range(2):
        with pytest.raises(TrainingDivergedError) as caught:
            train(config(2), tmp_path)
        message = str(caught.value)
        assert "is not finite at step 6: 3 steps of the run are skipped" in message
        assert "training.max_skipped_steps = 2" in message
        assert "last good checkpoint is of step 4" in message
        assert len(message.splitlines()) == 1
    with pytest.raises(UserError, match=r"max_skipped_steps is 1, .* skipped 2 steps"):
        train(config(1), tmp_path)
    assert train(config(3), tmp_path)
    assert train(config(10), tmp_path / "whole")
    whole, pieces = (
        final_state(config(10), folder) for folder in (tmp_path / "whole", tmp_path)
    )
    assert_trees_equal(pieces, whole)


@pytest.mark.usefixtures("spoiled")
def test_a_run_that_stopped_goes_on_skipping(
    digits_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a checkpoint of the time when nothing was counted, too."""
    with monkeypatch.context() as patch:
        patch.setattr(setup, "position", lambda state, data_state: data_state)
        with pytest.raises(TrainingDivergedError) as caught:
            train(mlp_config(digits_directory), tmp_path)
    assert "not finite at step 2; the last good checkpoint is of step 0" in str(
        caught.value
    )
    assert "training.on_nan=skip" in str(caught.value)
    assert train(mlp_config(digits_directory, **SKIP), tmp_path)
    state = final_state(mlp_config(digits_directory), tmp_path)
    assert (int(state.step), int(state.skipped)) == (8, 3)
