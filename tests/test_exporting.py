"""Exported samplers: the generator's bits, any batch, and no folder of this machine."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import export
from safetensors import safe_open
from safetensors.numpy import load_file

from multistep_cm import exporting, generation
from multistep_cm.errors import UserError
from multistep_cm.exporting import ExportOptions, WeightsSource
from multistep_cm.sharding.mesh import make_mesh
from tests.training.tiny import (
    TRANSFORMER,
    TWO_LEVELS,
    assert_trees_equal,
    noisy_params,
    tiny_config,
)

LABELS = np.array([3, 1, 4, 1, 5, 9, 2, 10], np.int32)
SEED = 2**31 + 5
MLP = {
    "model.name": "mlp",
    "model.channels": (16,),
    "model.blocks": (2,),
    "model.attention_resolutions": (),
}


def uint32(value: int) -> np.ndarray:
    return np.asarray(value, np.uint32)


CASES: list[Any] = [
    (
        {**TRANSFORMER, "sampling.guidance_interval": (0.2, 0.8)},
        "addim",
        1.5,
        False,
    ),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            (TWO_LEVELS, "ddim", 0.0, True),
            (MLP, "heun", 0.0, True),
            (MLP, "ancestral", 0.0, False),
            ({**TRANSFORMER, "model.dtype": "bfloat16"}, "ddim", 0.5, True),
            ({**MLP, "data.num_classes": 0}, "ddim", 0.0, True),
        )
    ),
]


@pytest.mark.parametrize(("network", "method", "scale", "baked"), CASES)
def test_exported_images_are_the_generators(
    network: dict[str, Any], method: str, scale: float, baked: bool
) -> None:
    """After a file's round trip, for the batch of the generator and within others."""
    config = tiny_config()
    config.update_from_flattened_dict(network)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    params = noisy_params(config, mesh, seed=0)
    options = generation.sampling_options(config, method, 3, scale)
    generator = generation.compile_generator(config, options, mesh, len(LABELS))
    expected = generator(params, LABELS, SEED)

    weights = exporting.flatten_params(params)
    to = ExportOptions(("cpu", "cuda", "tpu"), baked)
    written = exporting.export_sampler(config, options, weights, to).serialize()
    exported = export.deserialize(written)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    given = () if baked else (weights,)
    images = np.asarray(exported.call(*given, uint32(SEED), uint32(0), LABELS))
    assert (images.shape, images.dtype) == ((8, 8, 8, 1), np.uint8)
    assert len(np.unique(images.reshape(8, -1), axis=0)) == 8
    np.testing.assert_array_equal(images, expected)

    part = np.asarray(exported.call(*given, uint32(SEED), uint32(2), LABELS[2:5]))
    # A program of another shape rounds otherwise, by at most one step of uint8.
    assert np.abs(part.astype(int) - expected[2:5]).max() <= 1
    for folder in (Path(__file__).parents[1], Path(sys.prefix)):
        assert str(folder).encode() not in written


def test_source_locations_are_as_before() -> None:
    """The setting that hides folders is undone."""
    name = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, name)
    with pytest.raises(ZeroDivisionError), exporting._no_folder_names():
        assert getattr(jax.config, name) != before
        raise ZeroDivisionError
    assert getattr(jax.config, name) == before


def test_weights_are_what_any_reader_of_safetensors_finds(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, training__num_steps=3, teacher__workdir=str(tmp_path)
    )
    params = noisy_params(config, make_mesh(config.mesh, jax.devices()[:1]), seed=0)
    path = tmp_path / "weights.safetensors"
    weights = exporting.flatten_params(params)
    exporting.write_weights(path, weights, WeightsSource(7, 0.99), config)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    found = load_file(path)
    assert_trees_equal(exporting.unflatten_params(found), params)
    assert all(
        name.endswith(("kernel", "bias", "scale", "embedding")) for name in found
    )
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    assert (metadata["train_step"], metadata["ema_decay"]) == ("7", "0.99")
    stored = json.loads(metadata["config"])
    assert stored["training"]["num_steps"] == 3
    assert str(tmp_path) not in metadata["config"]


def test_a_program_has_a_largest_size() -> None:
    shape = (2**29 - 2**22,)
    exporting.check_size({"a": jax.ShapeDtypeStruct(shape, np.float32)})
    large = {"a": jax.ShapeDtypeStruct(shape, np.float32)}
    large["b"] = jax.ShapeDtypeStruct((1,), np.float32)
    with pytest.raises(UserError, match=r"2\.0 GiB, more than .* --weights=beside"):
        exporting.check_size(large)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "none" / "weights.safetensors"
    with pytest.raises(UserError, match=r"weights\.safetensors cannot be written"):
        exporting.write_weights(
            path, {"a": np.zeros(1)}, WeightsSource(0, 0.0), tiny_config()
        )
