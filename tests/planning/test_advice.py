"""What is tried when a config does not fit, with a compiler that is made up."""

from collections.abc import Callable
from typing import Any

import jax
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm.planning.advice import Attempt, alternatives, apply, search
from multistep_cm.planning.compiling import Compilation
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from tests.training.tiny import tiny_config

REFUSED = Compilation(False, None, None, 1.0)


def check(config: ConfigDict) -> Mesh:
    return setup.check_config(config, jax.devices()[:8])


def changes(**values: Any) -> list[dict[str, Any]]:
    config = tiny_config(None, **values)
    return list(alternatives(config, make_mesh(config.mesh, jax.devices()[:8])))


def test_every_change_comes_on_top_of_the_others() -> None:
    assert changes(training__batch_size=32) == [
        {"mesh.data": 1, "mesh.fsdp": -1},
        {"mesh.data": 1, "mesh.fsdp": -1, "model.remat": "full"},
        {"mesh.data": 1, "mesh.fsdp": -1, "model.remat": "full"}
        | {"training.accumulation": 2},
        {"mesh.data": 1, "mesh.fsdp": -1, "model.remat": "full"}
        | {"training.accumulation": 4},
    ]


def test_what_is_so_already_is_not_tried() -> None:
    found = changes(
        training__batch_size=64,
        training__accumulation=2,
        model__remat="full",
        mesh__data=1,
        mesh__fsdp=-1,
    )
    assert found == [{"training.accumulation": 4}, {"training.accumulation": 8}]


def test_a_smallest_batch_leaves_nothing() -> None:
    assert not changes(model__remat="full", mesh__data=1, mesh__fsdp=8)


def compiler(
    needs: Callable[[ConfigDict], int], seen: list[ConfigDict]
) -> Callable[[ConfigDict, Mesh], Compilation]:
    """Refuses what needs more than 100 bytes."""

    def compile_step(config: ConfigDict, mesh: Mesh) -> Compilation:
        seen.append(config)
        return Compilation(needs(config) <= 100, needs(config), 100, seconds=1.0)

    return compile_step


def test_the_search_ends_with_the_first_that_fits() -> None:
    config = tiny_config(None, training__batch_size=64)
    seen: list[ConfigDict] = []
    said: list[str] = []
    half = compiler(lambda c: 300 // c.training.accumulation, seen)
    mesh = make_mesh(config.mesh, jax.devices()[:8])
    attempts = search(config, mesh, REFUSED, check, half, said.append)
    # Two parts cannot be enough for three times the memory.
    assert [attempt.used_bytes for attempt in attempts] == [300, 300, 75]
    assert [attempt.fits for attempt in attempts] == [False, False, True]
    assert seen[-1].training.accumulation == 4
    assert seen[-1].model.remat == "full"
    assert said[:2] == [
        "trying --config.mesh.data=1 --config.mesh.fsdp=-1 ..",
        "  refused in 1 s: needs at least 0.0 MiB of each device",
    ]
    assert config.training.accumulation == 1


def test_changes_that_cannot_run_are_passed_over() -> None:
    # 24 examples over 8 devices: 3 each, which no power of two divides.
    config = tiny_config(None, training__batch_size=24, model__remat="full")
    config.mesh.update(data=1, fsdp=-1)
    seen: list[ConfigDict] = []
    never = compiler(lambda c: 300, seen)
    mesh = make_mesh(config.mesh, jax.devices()[:8])
    assert not search(config, mesh, REFUSED, check, never, lambda _: None)
    assert not seen


def test_changes_are_written_as_flags() -> None:
    attempt = Attempt({"model.remat": "full", "mesh.fsdp": -1}, False, None, 0.0)
    assert attempt.flags == "--config.model.remat=full --config.mesh.fsdp=-1"


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises((KeyError, AttributeError)):
        apply(tiny_config(), {"model.nothing": 1})
