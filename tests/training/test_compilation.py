"""Compiling ahead: what is said, and that the run finds the program."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from multistep_cm.errors import UserError
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import compilation, setup
from multistep_cm.training.compilation import compile_only, memory_lines
from tests.sharding.processes import outputs, start, train_command
from tests.training.tiny import noisy_params, one_device, tiny_config


@pytest.fixture
def threshold() -> Iterator[None]:
    """Puts back what `compile_only` changes for the rest of the process."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    yield
    jax.config.update(name, before)


def test_it_compiles_the_run_s_own_step_and_needs_no_data(
    threshold: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(tmp_path / "none", training__log_every=8)
    with one_device():
        compile_only(config)
    said = capsys.readouterr().out
    assert "compiling the train step for 1 devices" in said
    assert "memory of one device: " in said
    assert "temporaries: " in said
    assert not [*tmp_path.iterdir()]


def test_the_sum_counts_what_is_shared_once() -> None:
    memory = SimpleNamespace(
        argument_size_in_bytes=3 * 2**20,
        output_size_in_bytes=2 * 2**20,
        alias_size_in_bytes=2 * 2**20,
        temp_size_in_bytes=5 * 2**20,
        generated_code_size_in_bytes=2**20,
    )
    compiled = SimpleNamespace(memory_analysis=lambda: memory)
    first, *rest = memory_lines(compiled)  # type: ignore[arg-type]
    assert first == "memory of one device: 9.0 MiB"
    assert len(rest) == 5
    nothing = SimpleNamespace(memory_analysis=lambda: None)
    (sentence,) = memory_lines(nothing)  # type: ignore[arg-type]
    assert "does not say" in sentence


@pytest.mark.parametrize("method", ["denoising", "ct", "cd"])
def test_the_shapes_are_those_of_the_run(method: str) -> None:
    """Or the program would not be found in the cache."""
    config = tiny_config(method=method, teacher__workdir="somewhere")
    with one_device():
        mesh = make_mesh(config.mesh)
        expected = setup.freeze(config, mesh, noisy_params(config, mesh, 0))
        found = compilation.abstract_frozen(config, mesh)
    assert str(jax.tree.structure(found)) == str(jax.tree.structure(expected))
    for shape, array in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert shape.sharding == array.sharding


def test_a_config_that_cannot_run_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size is 12"):
        compile_only(tiny_config(training__batch_size=12))


@pytest.mark.slow
def test_the_run_finds_the_step_in_the_cache(
    digits_directory: Path, tmp_path: Path
) -> None:
    command = train_command(tiny_config(digits_directory), tmp_path / "run")
    command += [f"--compilation_cache={tmp_path / 'cache'}"]

    def steps_kept(*words: str) -> tuple[str, set[str]]:
        process = start([*command, *words], 8, JAX_COMPILATION_CACHE_DIR="")
        (said,) = outputs([process])
        assert process.returncode == 0, said
        names = (path.name for path in (tmp_path / "cache").iterdir())
        return said, {name for name in names if "train_step" in name}

    said, ahead = steps_kept("--compile_only")
    assert f"kept in {tmp_path / 'cache'}" in said
    assert not (tmp_path / "run").exists()
    assert ahead
    _, afterwards = steps_kept()
    # Another key would have made another file.
    assert {name for name in afterwards if name.endswith("-cache")} == {
        name for name in ahead if name.endswith("-cache")
    }
