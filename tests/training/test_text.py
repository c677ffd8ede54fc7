"""Every method with captions: shapes, the null caption, and a student's new weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from multistep_cm import factory
from multistep_cm.errors import UserError
from multistep_cm.losses.signature import Batch, Metrics, Params
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.sharding.rules import partition_spec, tree_shardings
from multistep_cm.training import setup
from multistep_cm.training.compilation import abstract_frozen
from multistep_cm.training.methods import METHODS
from multistep_cm.training.state import make_state
from multistep_cm.training.step import make_train_step
from multistep_cm.training.teacher import teacher_config
from multistep_cm.validation import validate
from tests.training.tiny import TRANSFORMER, noisy_params, tiny_config

TEXT: dict[str, Any] = {
    **TRANSFORMER,
    "data.text": "bytes",
    "data.text_length": 8,
    "data.num_classes": 0,
    "data.label_key": "",
    "model.text_width": 8,
    "model.text_blocks": 1,
    "model.text_head_dim": 8,
    "teacher.workdir": "T",
}
ONE = jax.devices()[:1]


def text_config(**values: Any) -> ConfigDict:
    config = tiny_config()
    named = {key.replace("__", "."): value for key, value in values.items()}
    config.update_from_flattened_dict({**TEXT, **named})
    return config


@pytest.mark.parametrize("text", ["bytes", "precomputed"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_captions(method: str, text: str) -> None:
    values: dict[str, Any] = {"data__text_width": 5} if text == "precomputed" else {}
    if METHODS[method].is_guided:
        values["consistency__guidance_range"] = (0.0, 3.0)
    config = text_config(method=method, data__text=text, **values)
    validate(config)
    mesh = make_mesh(config.mesh, ONE)
    state = setup.abstract_state(config, mesh)
    batch = setup.abstract_batch(config, mesh)
    assert batch["text"].shape == ((8, 8) if text == "bytes" else (8, 8, 5))
    frozen = abstract_frozen(config, mesh)
    step = setup.make_step(config, mesh)
    after, metrics = jax.eval_shape(step, state, batch, frozen)
    assert metrics["loss"].shape == ()
    assert jax.tree.map(lambda a: a.shape, after) == jax.tree.map(
        lambda a: a.shape, state
    )
    assert "guidance" not in str(jax.tree.structure(frozen))
    is_told = "guidance" in state.params["condition"]
    assert is_told == METHODS[method].is_guided


def kept_captions(dropout: float, size: int = 512) -> np.ndarray:
    """How many bytes of each caption a loss sees, and the scale that is drawn."""
    config = text_config(
        method="cd",
        training__batch_size=size,
        training__caption_dropout=dropout,
        consistency__guidance_range=(1.0, 3.0),
    )

    def loss(
        params: Params, batch: Batch, keys: jax.Array, step: jax.Array, frozen: Any
    ) -> tuple[jax.Array, Metrics]:
        seen = batch["cond"]["text_mask"].sum(-1).astype(jnp.float32)
        losses = params["a"] * seen + 100 * batch["cond"]["guidance"]
        return jnp.mean(losses), {"t": jnp.arange(size) / size, "loss": losses}

    mesh = make_mesh(config.mesh, ONE)
    optimizer = optax.sgd(1.0)
    state = make_state({"a": jnp.float32(1.0)}, optimizer)
    config.training.time_bins = size
    step = jax.jit(make_train_step(loss, optimizer, config, mesh))
    batch = {
        "image": jnp.zeros((size, 8, 8, 1), jnp.uint8),
        "label": jnp.zeros(size, jnp.int32),
        "text": jnp.zeros((size, 8), jnp.uint8),
        "text_mask": jnp.tile(jnp.arange(8) < 5, (size, 1)),
    }
    return np.asarray(step(state, batch, {})[1]["bin_loss"])


def test_captions_are_dropped_now_and_then_and_scales_are_uniform() -> None:
    dropped = kept_captions(0.25)
    kept = kept_captions(0.0)
    np.testing.assert_allclose(np.unique(np.round(kept - dropped, 3)), [0, 5])
    share = np.mean(kept - dropped > 2.5)
    assert 0.25 - 0.08 < share < 0.25 + 0.08
    scales = (kept - 5) / 100
    assert (scales >= 1).all() and (scales < 3).all()
    assert abs(scales.mean() - 2) < 0.1
    assert abs(scales.std() - 2 / np.sqrt(12)) < 0.05


def test_a_student_is_its_teacher_until_it_is_told_a_scale() -> None:
    config = text_config(method="cd", consistency__guidance_range=(0.0, 3.0))
    mesh = make_mesh(config.mesh, ONE)
    teacher = noisy_params(teacher_config(config), mesh, seed=0)
    state = setup.init_state(config, mesh, teacher)
    new = {"guidance_in", "guidance"}
    condition = dict(state.params["condition"])
    assert set(condition) - set(teacher["condition"]) == new
    assert not np.any(condition["guidance"]["kernel"])
    for key, want in teacher["condition"].items():
        jax.tree.map(np.testing.assert_array_equal, condition[key], want)
    for key in set(teacher) - {"condition"}:
        jax.tree.map(np.testing.assert_array_equal, state.params[key], teacher[key])
    config.consistency.guidance_range = ()
    plain = setup.init_state(config, mesh, teacher)
    jax.tree.map(np.testing.assert_array_equal, plain.params, teacher)


def test_encoder_and_attention_are_cut_like_other_matrices() -> None:
    sizes = {"data": 1, "fsdp": 2, "tensor": 2}
    shapes = {
        ("text", "encoder", "byte", "embedding"): ((256, 512), (None, "fsdp")),
        ("text", "encoder", "window", "kernel"): ((2560, 512), ("fsdp", "tensor")),
        ("blocks", "attention", "q", "kernel"): (
            (2, 512, 512),
            (None, "fsdp", "tensor"),
        ),
        ("blocks", "text_attention", "kv", "kernel"): (
            (2, 512, 2, 1024),
            (None, "fsdp", None, "tensor"),
        ),
        ("blocks", "text_attention", "out", "kernel"): (
            (2, 1024, 1024),
            (None, "tensor", "fsdp"),
        ),
    }
    for path, (shape, want) in shapes.items():
        assert tuple(partition_spec(path, shape, sizes)) == want, path
    config = text_config(model__text_width=128, model__channels=(64,))
    mesh = make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
    params = factory.abstract_params(factory.make_network(config), config)
    cut = {
        leaf.spec
        for leaf in jax.tree.leaves(tree_shardings(params["text"], mesh))
        if leaf.spec
    }
    assert any("fsdp" in spec for spec in cut)
    assert any("tensor" in spec for spec in cut)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.name": "mlp"}, "model mlp reads no captions"),
        ({"data.name": "folder"}, "a folder of images has no captions"),
        ({"data.text_length": 10}, "text_length is 10, expected a multiple of 4"),
        ({"data.text": "precomputed"}, "text_width is 0"),
        ({"model.text_head_dim": 3}, "does not divide model.text_width = 8"),
        ({"consistency.guidance_range": (2.0, 1.0)}, "0 <= low < high"),
        (
            {"consistency.guidance_range": (0.0, 1.0), "method": "ct"},
            "method ct guides no teacher",
        ),
        (
            {
                "consistency.guidance_range": (0.0, 1.0),
                "consistency.guidance_scale": 1.0,
            },
            "set one of them",
        ),
        (
            {"consistency.guidance_range": (1.0, 2.0), "method": "cd"},
            "sampling.guidance_scale is 0.0, expected a scale within",
        ),
        (
            {"data.text": "none", "consistency.guidance_scale": 1.0, "method": "cd"},
            "no classes or captions to guide to",
        ),
        ({"method": "guidance", "teacher.workdir": ""}, "needs a trained teacher"),
    ],
)
def test_what_cannot_be_meant_is_said(values: dict[str, Any], message: str) -> None:
    config = text_config(**{k.replace(".", "__"): v for k, v in values.items()})
    with pytest.raises(UserError, match=message) as caught:
        validate(config)
    assert len(str(caught.value).splitlines()) == 1
