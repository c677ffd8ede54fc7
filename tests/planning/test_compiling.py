"""Compiling for a plan: memory, refusals, and nothing left behind."""

from typing import Any

import jax
import pytest

from multistep_cm.planning.compiling import Memory, compile_config, parse_refusal
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from tests.training.tiny import tiny_config

GIB = 1024**3


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent "
            "error. Ran out of memory in memory space hbm. Used 16.34G of 15.75G hbm. "
            "Exceeded hbm capacity by 608.97M.",
            (int(16.34 * GIB), int(15.75 * GIB)),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
            "for HLO temporaries (1.5T) exceeds available HBM (95.74G).",
            (int(1.5 * 1024 * GIB), int(95.74 * GIB)),
        ),
        ("RESOURCE_EXHAUSTED: something new", (None, None)),
    ],
)
def test_what_a_refusal_says(message: str, expected: tuple[int, int]) -> None:
    assert parse_refusal(message) == expected


def test_the_sum_counts_what_is_shared_once() -> None:
    assert Memory(30, 20, 19, 5, 1).total == 37


def failing(message: str) -> Any:
    def build_step(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError(message)

    return build_step


def test_want_of_memory_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    message = "RESOURCE_EXHAUSTED: Used 19.31G of 15.75G hbm."
    monkeypatch.setattr(setup, "build_step", failing(message))
    result = compile_config(config, mesh)
    assert not result.fits
    assert result.used_bytes == int(19.31 * GIB)
    assert result.usable_bytes == int(15.75 * GIB)
    assert result.memory is None


def test_another_error_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    monkeypatch.setattr(setup, "build_step", failing("INTERNAL: a bug"))
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        compile_config(config, mesh)
    after = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    assert after == before
