"""Ways to sample, and that an image belongs to its seed, label and index."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from multistep_cm import generation
from multistep_cm.config import default_config
from multistep_cm.data.sources import ArraySource
from multistep_cm.errors import UserError
from multistep_cm.generation import SamplingOptions, sampling_options
from multistep_cm.sharding.mesh import make_mesh
from tests.training.tiny import noisy_params, tiny_config


def config_with(**values: Any) -> ConfigDict:
    config = default_config()
    named = {key.replace("__", "."): value for key, value in values.items()}
    config.update_from_flattened_dict(named)
    return config


def test_the_config_says_how_a_teacher_is_sampled() -> None:
    config = config_with(
        sampling__method="addim",
        sampling__num_steps=7,
        sampling__guidance_scale=0.5,
        sampling__x_variance="measured",
    )
    assert sampling_options(config) == SamplingOptions("addim", 7, 0.5, "measured")


def test_what_is_asked_for_comes_before_the_config() -> None:
    config = config_with(sampling__guidance_scale=0.5)
    options = sampling_options(config, "addim", 3, 0.0, "measured")
    assert options == SamplingOptions("addim", 3, 0.0, "measured")


@pytest.mark.parametrize("method", ["cd", "ct"])
def test_a_student_has_the_steps_that_it_was_trained_for(method: str) -> None:
    config = config_with(
        method=method, consistency__student_steps=2, sampling__method="heun"
    )
    for num_steps in (None, 2):
        options = sampling_options(config, None, num_steps)
        assert (options.method, options.num_steps) == ("ddim", 2)
    with pytest.raises(UserError, match=r"num_steps is 3.*trained for 2"):
        sampling_options(config, None, 3)
    with pytest.raises(UserError, match=r"'addim'.*which is 'ddim'"):
        sampling_options(config, "addim")


@pytest.mark.parametrize("scale", [-0.5, float("nan")])
def test_guidance_is_at_least_none(scale: float) -> None:
    with pytest.raises(UserError, match="expected at least 0"):
        sampling_options(default_config(), guidance_scale=scale)


def test_guidance_needs_classes() -> None:
    config = config_with(data__num_classes=0)
    assert sampling_options(config).guidance_scale == 0
    with pytest.raises(UserError, match="no classes"):
        sampling_options(config, guidance_scale=0.5)


def test_network_calls_are_the_steps_but_for_heun() -> None:
    for method in ("ddim", "addim", "ancestral"):
        assert sampling_options(default_config(), method, 5).network_calls == 5
    assert sampling_options(default_config(), "heun", 5).network_calls == 9


def test_labels_in_turn() -> None:
    labels = generation.balanced_labels(7, 3)
    np.testing.assert_array_equal(labels, [0, 1, 2, 0, 1, 2, 0])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(generation.balanced_labels(3, 0), [0, 0, 0])


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("method", ["ddim", "ancestral"])
def test_images_do_not_depend_on_batch_or_mesh(method: str) -> None:
    config = tiny_config()
    options = sampling_options(config, method, 2)
    labels = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], np.int32)
    drawn: dict[tuple[int, int], np.ndarray] = {}
    for devices, batch_size in [(1, 11), (1, 4), (2, 3)]:
        mesh = make_mesh(config.mesh, jax.devices()[:devices])
        params = noisy_params(config, mesh, seed=0)
        generator = generation.compile_generator(config, options, mesh, batch_size)
        assert generator.batch_size == (4 if devices == 2 else batch_size)
        done: list[int] = []
        images = generator(params, labels, 0, done.append)
        assert (images.shape, images.dtype) == ((11, 8, 8, 1), np.uint8)
        assert done == ([11] if batch_size == 11 else [4, 8, 11])
        drawn[devices, batch_size] = images.astype(int)
        if batch_size == 11:
            np.testing.assert_array_equal(generator(params, labels, 0), images)
            other = labels.copy()
            other[2] = 0
            changed = (generator(params, other, 0) != images).any((1, 2, 3))
            np.testing.assert_array_equal(changed, np.arange(11) == 2)
            assert (generator(params, labels, 1) != images).any((1, 2, 3)).all()
    first = drawn[1, 11]
    # Equal labels, other noise.
    assert (first[1] != first[3]).any()
    for images in drawn.values():
        # Programs of other shapes round otherwise, by at most one step of uint8.
        assert np.abs(images - first).max() <= 1


@pytest.mark.parametrize(
    ("method", "x_variance"), [("ddim", "measured"), ("addim", "analytic")]
)
def test_x_variance_is_measured_for_addim_only(
    monkeypatch: pytest.MonkeyPatch, method: str, x_variance: str
) -> None:
    monkeypatch.setattr(generation, "open_source", lambda *_: pytest.fail("read"))
    options = sampling_options(default_config(), method, 2, x_variance=x_variance)
    assert generation.measured_x_variance(default_config(), options, {}) is None


def test_measured_x_variance_is_of_the_training_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config()
    params = noisy_params(config, make_mesh(config.mesh, jax.devices()[:1]), seed=0)
    options = sampling_options(config, "addim", 2, x_variance="measured")
    rng = np.random.default_rng(0)
    source = ArraySource(
        "fake",
        "train",
        rng.integers(256, size=(16, 8, 8, 1), dtype=np.uint8),
        rng.integers(10, size=16, dtype=np.int32),
    )
    monkeypatch.setattr(generation, "open_source", lambda *_: source)
    x_variance = generation.measured_x_variance(config, options, params)
    assert x_variance is not None
    values = [
        float(jnp.mean(x_variance(jnp.float32(t), jnp.float32(0)))) for t in (1.0, 0.5)
    ]
    assert all(np.isfinite(value) and value >= 0 for value in values)
    assert any(values)


def test_guidance_has_an_interval() -> None:
    config = config_with(sampling__guidance_interval=(0.2, 0.8))
    options = sampling_options(config, guidance_scale=1.0)
    assert options == SamplingOptions("ddim", 128, 1.0, "analytic", (0.2, 0.8))
    config.method = "ct"
    assert sampling_options(config).guidance_interval == (0.2, 0.8)


def test_guidance_needs_a_model_that_saw_images_without_labels() -> None:
    config = config_with(training__label_dropout=0.0)
    assert sampling_options(config).guidance_scale == 0
    with pytest.raises(UserError, match=r"label_dropout = 0: it knows no prediction"):
        sampling_options(config, guidance_scale=0.5)
