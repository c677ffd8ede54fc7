"""A program that was traced before is the same, found by what it is made of."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm import factory
from multistep_cm.sharding import rules
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup, tracing
from multistep_cm.training.step import TrainStep, compile_step
from multistep_cm.training.tracing import (
    kept_init,
    kept_step,
    program_folder,
    program_key,
)
from tests.training.tiny import (
    assert_trees_equal,
    host,
    noisy_params,
    random_batch,
    tiny_config,
)


@contextlib.contextmanager
def precision(value: str) -> Iterator[None]:
    """A setting of JAX that changes programs, for all of the process."""
    name = "jax_default_matmul_precision"
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def never_traced(*arguments: Any) -> Any:
    raise AssertionError("it was traced again")


def two_steps(config: ConfigDict, mesh: Mesh, step: TrainStep) -> Any:
    """State and metrics after two steps, on the host; the first state must be gone."""
    teacher = noisy_params(config, mesh, seed=1)
    state = setup.init_state(config, mesh, teacher)
    frozen = setup.freeze(config, mesh, teacher)
    like = setup.abstract_batch(config, mesh)
    compiled = compile_step(step, state, like, frozen, mesh)
    where = jax.tree.map(lambda leaf: leaf.sharding, like)
    metrics = []
    for seed in range(2):
        before = state
        batch = jax.device_put(random_batch(config, seed), where)
        state, values = compiled(state, batch, frozen)
        metrics.append(host(values))
        assert before.params["out"]["kernel"].is_deleted()
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(
        lambda leaf: leaf.sharding, setup.abstract_state(config, mesh)
    )
    return host(state), metrics


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_the_same_bits(
    sizes: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "SMALLEST_CUT", 128)
    data, fsdp, tensor = sizes
    config = tiny_config(
        method="cd",
        model__name="mlp",
        mesh__data=data,
        mesh__fsdp=fsdp,
        mesh__tensor=tensor,
    )
    mesh = make_mesh(config.mesh, jax.devices()[: sizes[0] ** 3])
    step = setup.make_step(config, mesh)

    def kept(step: TrainStep) -> TrainStep:
        teacher = noisy_params(config, mesh, seed=1)
        return kept_step(
            step,
            setup.abstract_state(config, mesh),
            setup.abstract_batch(config, mesh),
            setup.freeze(config, mesh, teacher),
            config,
            mesh,
            tmp_path / "programs",
        )

    expected = two_steps(config, mesh, step)
    assert_trees_equal(two_steps(config, mesh, kept(step)), expected)
    (file,) = (tmp_path / "programs").iterdir()
    assert_trees_equal(two_steps(config, mesh, kept(never_traced)), expected)
    # A damaged one is not believed.
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(AssertionError, match="traced again"):
        kept(never_traced)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("num_devices", [1, 8])
def test_the_same_first_state(
    num_devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "SMALLEST_CUT", 128)
    config = tiny_config(mesh__data=1, mesh__fsdp=num_devices)
    mesh = make_mesh(config.mesh, jax.devices()[:num_devices])
    expected = setup.init_state(config, mesh, None)
    like = setup.abstract_state(config, mesh)
    traced = setup.init_state(config, mesh, None, tmp_path)
    monkeypatch.setattr(factory, "init_params", never_traced)
    read = setup.init_state(config, mesh, None, tmp_path)
    for state in (traced, read):
        assert_trees_equal(host(state), host(expected))
        assert jax.tree.map(lambda a: a.sharding, state) == jax.tree.map(
            lambda a: a.sharding, expected
        )
    assert setup.abstract_state(config, mesh, tmp_path) == like
    with pytest.raises(AssertionError, match="traced again"):
        setup.init_state(tiny_config(seed=1), mesh, None, tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = tiny_config()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state, batch = (
        setup.abstract_state(config, mesh),
        setup.abstract_batch(config, mesh),
    )
    step = setup.make_step(config, mesh)
    kept = kept_step(step, state, batch, {}, config, mesh, tmp_path / "file" / "below")
    assert kept is not step
    assert jax.eval_shape(kept, state, batch, {})[0].step.shape == ()


def test_what_cannot_be_kept_is_run_as_it_is(tmp_path: Path) -> None:
    config = tiny_config()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state, batch = (
        setup.abstract_state(config, mesh),
        setup.abstract_batch(config, mesh),
    )

    def refused(*arguments: Any) -> Any:
        raise ValueError("Cannot serialize code with custom calls")

    kept = kept_step(refused, state, batch, {}, config, mesh, tmp_path)
    assert kept is refused
    assert kept_init(refused, config, mesh, tmp_path) is refused
    assert not [*tmp_path.iterdir()]


def test_the_key_is_of_all_that_it_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    batch = setup.abstract_batch(config, mesh)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "loss.py").write_text("x * x")
    monkeypatch.setattr(tracing, "PACKAGE", tmp_path)
    first = program_key("step", config, batch)
    assert program_key("step", config, batch) == first
    keys = {first}

    keys.add(program_key("initialisation", config, batch))
    keys.add(program_key("step", tiny_config(consistency__eta=0.5), batch))
    keys.add(
        program_key("step", config, setup.abstract_batch(tiny_config(seed=1), mesh))
    )
    assert len(keys) == 3  # the last has the shapes of the first
    larger = tiny_config(training__batch_size=16)
    keys.add(program_key("step", config, setup.abstract_batch(larger, mesh)))
    everywhere = make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    keys.add(program_key("step", config, setup.abstract_batch(config, everywhere)))
    with precision("highest"):
        keys.add(program_key("step", config, batch))
    (tmp_path / "inner" / "loss.py").write_text("x * x * x")
    keys.add(program_key("step", config, batch))
    monkeypatch.setattr(tracing, "versions", lambda *names: {"jax": "0.0"})
    keys.add(program_key("step", config, batch))
    assert len(keys) == 8


def test_the_folder_is_that_of_the_cache(tmp_path: Path) -> None:
    before = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009
    try:
        for cache, folder in [
            (str(tmp_path), tmp_path / "traced"),
            ("gs://bucket/cache", None),
            (None, None),
        ]:
            jax.config.update("jax_compilation_cache_dir", cache)
            assert program_folder() == folder
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
