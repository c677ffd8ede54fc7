"""Several averages of the weights: exact, cut like the others, saved and resumed."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from multistep_cm import config as configs
from multistep_cm.checkpoints import Checkpoints
from multistep_cm.errors import UserError
from multistep_cm.planning.compiling import compile_config
from multistep_cm.sharding import rules
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from multistep_cm.training.ema import more_decays
from multistep_cm.training.loop import train
from multistep_cm.training.state import TrainState
from multistep_cm.training.step import compile_step, make_train_step
from multistep_cm.training.teacher import average_name, load_ema
from multistep_cm.validation import validate
from tests.training.tiny import (
    MLP,
    assert_trees_equal,
    host,
    noisy_params,
    one_device,
    random_batch,
    tiny_config,
)

DECAYS = (0.0, 0.5, 0.99)
NAMES = ("ema_0.0", "ema_0.5", "ema_0.99")
QUICK_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
ONE = {"data": 1, "fsdp": 1, "tensor": 1}


def averaged_config(directory: Path | None = None, **values: Any) -> ConfigDict:
    return tiny_config(directory, training__more_ema_decays=DECAYS, **values)


def distil(config: ConfigDict, devices: int, steps: int) -> tuple[Any, list[Any]]:
    """The state after some steps from noisy parameters, and the parameters of each."""
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    state = jax.jit(
        lambda params: setup.first_state(params, config),
        out_shardings=jax.tree.map(
            lambda leaf: leaf.sharding, setup.abstract_state(config, mesh)
        ),
    )(noisy_params(config, mesh, seed=1))
    params = [host(state.params)]
    frozen = setup.freeze(config, mesh, None)
    with pytest.MonkeyPatch.context() as patch:
        # Less optimised, in a fraction of the time.
        compile_quickly = functools.partialmethod(
            jax.stages.Lowered.compile, compiler_options=QUICK_COMPILATION
        )
        patch.setattr(jax.stages.Lowered, "compile", compile_quickly)
        compiled = setup.build_step(config, mesh, frozen)
    where = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract_batch(config, mesh))
    for step in range(steps):
        batch = jax.device_put(random_batch(config, seed=step), where)
        before = state
        state, _ = compiled(state, batch, frozen)
        # Donated, every average with the rest.
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        params.append(host(state.params))
    return state, params


def closed_form(params: list[Any], decay: float) -> Any:
    """The average of the parameters after 0, 1, .. steps, in float64, as one sum.

    Of step k + 1 it holds (1 - d_k) times all later d, where d_k is the decay of the
    update from k to k + 1; of the start, the product of all.
    """
    decays = [min(decay, (1 + k) / (10 + k)) for k in range(len(params) - 1)]
    shares = [np.prod(decays)]
    shares += [(1 - d) * np.prod(decays[k + 1 :]) for k, d in enumerate(decays)]
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    return jax.tree.map(
        lambda *leaves: sum(
            share * np.asarray(leaf, np.float64)
            for share, leaf in zip(shares, leaves, strict=True)
        ),
        *params,
    )


def test_averages_are_the_closed_form_and_disturb_nothing() -> None:
    values = {**MLP, "training.decay": "constant"}
    plain, _ = distil(tiny_config(**values), 1, steps=12)
    state, params = distil(averaged_config(**values), 1, steps=12)
    assert plain.more_emas == {}
    assert tuple(state.more_emas) == NAMES
    for decay, name in zip(DECAYS, NAMES, strict=True):
        expected = closed_form(params, decay)
        for found, leaf in zip(
            jax.tree.leaves(state.more_emas[name]),
            jax.tree.leaves(expected),
            strict=True,
        ):
            np.testing.assert_allclose(found, leaf, rtol=2e-6, atol=2e-7)
    # Main average, weights and moments have the bits that they have alone.
    for kept in ("params", "ema", "optimizer"):
        assert_trees_equal(getattr(state, kept), getattr(plain, kept))
    # (1 + k) / (10 + k) is above 0.5 from k = 9 on, and never above 0.99 so far.
    assert_trees_equal(state.more_emas["ema_0.99"], state.ema)
    halves, main = state.more_emas["ema_0.5"], state.ema
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), halves, main)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_averages_are_cut_over_eight_devices_like_the_main_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rules, "SMALLEST_CUT", 64)
    sizes = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    values = {**MLP, **sizes, "training.epsilon": 1e-3}
    state, params = distil(averaged_config(**values), 8, steps=3)
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(state.ema)]
    assert sum(spec != PartitionSpec() for spec in specs) > 10
    for name, decay in zip(NAMES, DECAYS, strict=True):
        leaves = jax.tree.leaves(state.more_emas[name])
        assert [leaf.sharding.spec for leaf in leaves] == specs
        expected = jax.tree.leaves(closed_form(params, decay))
        for found, leaf in zip(leaves, expected, strict=True):
            np.testing.assert_allclose(found, leaf, rtol=2e-6, atol=2e-7)


def test_several_steps_in_one_call() -> None:
    """The averages are part of what the scan carries."""
    optimizer, mesh = optax.sgd(0.1), make_mesh(ONE, jax.devices()[:1])
    config = averaged_config(training__steps_per_call=4)

    def loss(params: Any, batch: Any, keys: Any, step: Any, frozen: Any) -> Any:
        losses = params["a"] + 0.0 * batch["image"].mean((1, 2, 3))
        return losses.mean(), {"t": losses * 0, "loss": losses}

    params = {"a": np.float32(1.0)}
    more = {name: dict(params) for name in NAMES}
    state = TrainState(
        jax.numpy.int32(0),
        params,
        params,
        more,
        None,
        optimizer.init(params),
        jax.numpy.int32(0),
    )
    state = jax.tree.map(jax.numpy.array, state)
    compiled = compile_step(
        make_train_step(loss, optimizer, config, mesh),
        rules.place_abstract(state, mesh),
        setup.abstract_batch(config, mesh),
        {},
        mesh,
    )
    batch = jax.tree.map(jax.numpy.asarray, random_batch(config, seed=0))
    state, _ = compiled(state, batch, {})
    values = [{"a": np.float64(1 - 0.1 * k)} for k in range(5)]
    for name, decay in zip(NAMES, DECAYS, strict=True):
        expected = closed_form(values, decay)["a"]
        assert float(state.more_emas[name]["a"]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("users_hlo")
def test_a_plan_counts_every_average() -> None:
    mesh = make_mesh(ONE, jax.devices()[:1])
    plain, averaged = (
        compile_config(config, mesh)
        for config in (tiny_config(**MLP), averaged_config(**MLP))
    )
    assert plain.memory is not None
    assert averaged.memory is not None
    params = setup.abstract_state(tiny_config(**MLP), mesh).params
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    for name in ("arguments", "outputs"):
        more = getattr(averaged.memory, name) - getattr(plain.memory, name)
        assert more == pytest.approx(3 * size, rel=0.02)
    assert averaged.used_bytes is not None
    assert plain.used_bytes is not None
    # They are updated in place.
    assert averaged.used_bytes - plain.used_bytes == pytest.approx(3 * size, rel=0.1)


@pytest.fixture(scope="module")
def workdir(digits_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps with three further averages; to read."""
    folder = tmp_path_factory.mktemp("averages")
    with one_device():
        assert train(averaged_config(digits_directory), folder)
    return folder


def restore(workdir: Path, config: ConfigDict, devices: int) -> TrainState:
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    with Checkpoints(workdir) as checkpoints:
        found = setup.restore_state(checkpoints, config, mesh)
    assert found is not None
    return found[0]


def test_a_run_without_more_saves_what_it_saved_before(
    teacher_workdir: Path, workdir: Path
) -> None:
    def items(folder: Path) -> set[str]:
        step = folder / "checkpoints" / "8"
        return {path.name for path in step.iterdir() if path.is_dir()}

    before = {"params", "ema", "optimizer", "data", "config", "digests"}
    assert items(teacher_workdir) == before
    assert items(workdir) == before | set(NAMES)
    one = make_mesh(ONE, jax.devices()[:1])
    state, plain = (
        restore(folder, config, 1)
        for folder, config in (
            (workdir, averaged_config(mesh__data=1)),
            (teacher_workdir, tiny_config(mesh__data=1)),
        )
    )
    assert plain.more_emas == {}
    assert_trees_equal(state.params, plain.params)
    assert_trees_equal(state.ema, plain.ema)
    config = averaged_config()
    for decay, name in ((None, "ema"), (0.999, "ema"), (0.5, "ema_0.5")):
        assert average_name(config, decay) == name
        step, params = load_ema(workdir, config, one, decay)
        assert step == 8
        expected = state.ema if name == "ema" else state.more_emas[name]
        assert_trees_equal(params, expected)


def test_one_average_is_read_alone_and_on_another_mesh(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "SMALLEST_CUT", 64)
    eight = averaged_config(mesh__data=1, mesh__fsdp=8)
    one, cut = (
        restore(workdir, averaged_config(mesh__data=1), 1),
        restore(workdir, eight, 8),
    )
    assert_trees_equal(host(one), host(cut))
    parts = [leaf.sharding.spec for leaf in jax.tree.leaves(cut.more_emas)]
    assert any(spec != PartitionSpec() for spec in parts)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(8, setup.split_state(cut), {}, eight.to_dict())
        for name in ("params", "ema", "ema_0.5", "optimizer"):
            checkpoints.wait()
            for path in (tmp_path / "checkpoints" / "8" / name).rglob("d/*"):
                path.unlink()
    mesh = make_mesh(ONE, jax.devices()[:1])
    step, params = load_ema(tmp_path, averaged_config(), mesh, 0.99)
    assert step == 8
    assert_trees_equal(params, one.more_emas["ema_0.99"])


def test_a_flipped_bit_of_an_average_is_found(workdir: Path, tmp_path: Path) -> None:
    config = averaged_config(mesh__data=1)
    mesh = make_mesh(ONE, jax.devices()[:1])
    state = restore(workdir, config, 1)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (4, 8):
            checkpoints.save(step, setup.split_state(state), {}, {})
    with Checkpoints(tmp_path) as checkpoints:
        assert [*checkpoints.verify(mesh)] == [(8, ""), (4, "")]
    files = (tmp_path / "checkpoints" / "8" / "ema_0.5").rglob("d/*")
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with Checkpoints(tmp_path) as checkpoints:
        (newest, damage), (_, older) = checkpoints.verify(mesh)
        assert (newest, older) == (8, "")
        assert damage
    assert restore(tmp_path, config, 1).step == 4
    assert load_ema(tmp_path, config, mesh, 0.99)[0] == 8


def test_a_run_goes_on_with_its_averages_and_with_no_others(
    digits_directory: Path, tmp_path: Path, workdir: Path
) -> None:
    config = averaged_config(digits_directory)
    half = config.copy_and_resolve_references()
    # Constant, so that the schedule does not know where the run ends.
    with one_device():
        stopped = _stop_after_four(config, tmp_path)
        assert stopped == 4
        assert train(config, tmp_path)
        assert_trees_equal(
            setup.split_state(restore(tmp_path, averaged_config(mesh__data=1), 1)),
            setup.split_state(restore(workdir, averaged_config(mesh__data=1), 1)),
        )
        for decays in ((), (0.5,), (*DECAYS, 0.9)):
            half.training.more_ema_decays = decays
            with pytest.raises(UserError, match=r"training\.more_ema_decays: ") as said:
                train(half, tmp_path)
            assert "choose another --workdir or the same config" in str(said.value)


def _stop_after_four(config: ConfigDict, workdir: Path) -> int:
    """As if killed after the first save: the later one is taken away."""
    assert train(config, workdir)
    for path in sorted((workdir / "checkpoints" / "8").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (workdir / "checkpoints" / "8").rmdir()
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.latest_step() or 0


@pytest.mark.parametrize("decays", [(1.0,), (-0.1,), (0.5, 0.5), (0.999,), (2,)])
def test_decays_that_cannot_be_meant(decays: tuple[float, ...]) -> None:
    config = tiny_config(training__more_ema_decays=decays)
    with pytest.raises(UserError, match=r"training\.more_ema_decays is") as said:
        validate(config)
    assert "\n" not in str(said.value)


def test_names_of_averages() -> None:
    config = tiny_config()
    assert more_decays(config.training) == {}
    configs.override(config, "training.more_ema_decays", "0,0.9999999")
    validate(config)
    assert more_decays(config.training) == {"ema_0.0": 0.0, "ema_0.9999999": 0.9999999}
    with pytest.raises(UserError) as said:
        average_name(config, 0.99)
    assert str(said.value) == (
        "--ema_decay is 0.99, but the run tracks only 0.999, 0.0, 0.9999999: choose of "
        "these, or train another with --config.training.more_ema_decays=0.99"
    )
