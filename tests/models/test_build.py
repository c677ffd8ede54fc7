"""Configs to networks: parameter counts of the paper, and every refusal."""

import re
from typing import Any

import jax.numpy as jnp
import pytest

from multistep_cm.models.build import build_network, check_model, count_parameters
from tests.models.networks import SMALL, init_shapes

PAPER = {
    **SMALL,
    "name": "uvit",
    "attention_resolutions": (32, 16),
    "head_dim": 128,
    "mlp_ratio": 4,
    "condition_width": 1024,
}

MLP: dict[str, Any] = {
    "name": "mlp",
    "channels": (8,),
    "blocks": (2,),
    "attention_resolutions": (),
}


@pytest.mark.parametrize(
    ("size", "channels", "blocks", "millions", "digits"),
    [
        (64, (256, 512, 1024), (3, 3, 16), 394.0, 1),
        (128, (128, 256, 512, 1024), (3, 3, 3, 16), 397.4, 1),
        (64, (512, 1024, 2048), (3, 3, 16), 1243, 0),
        (128, (256, 512, 1024, 2048), (3, 3, 3, 16), 1254, 0),
    ],
)
@pytest.mark.parametrize("scan", [True, False])
def test_parameter_counts_are_the_papers(
    size: int,
    channels: tuple[int, ...],
    blocks: tuple[int, ...],
    millions: float,
    digits: int,
    scan: bool,
) -> None:
    model = PAPER | {"channels": channels, "blocks": blocks, "scan_blocks": scan}
    check_model(model, size)
    net = build_network(model, image_channels=3, num_classes=1000)
    z_t, t = jnp.zeros((1, size, size, 3)), jnp.zeros(1)
    shapes = init_shapes(net, (z_t, t, {"label": jnp.zeros(1, jnp.int32)}))
    assert round(count_parameters(shapes) / 1e6, digits) == millions


def test_count_parameters_counts_scalars_and_arrays() -> None:
    assert count_parameters({"a": jnp.zeros((2, 3)), "b": [jnp.zeros(())]}) == 7


def test_unconditional_network_takes_no_label() -> None:
    net = build_network(SMALL, image_channels=1, num_classes=0)
    shapes = init_shapes(net, (jnp.zeros((1, 8, 8, 1)), jnp.zeros(1), {}))
    assert "label" not in shapes["condition"]


def test_good_models_pass() -> None:
    check_model(SMALL, 8)
    check_model(SMALL | {"channels": (4,), "blocks": (1,)}, 7)
    # A level without attention may have channels that head_dim does not divide.
    check_model(SMALL | {"channels": (12, 16)}, 8)
    check_model(SMALL | MLP, 7)


@pytest.mark.parametrize(
    ("changes", "size", "sentence"),
    [
        (
            {"name": "unett"},
            8,
            "model.name is 'unett', expected one of: unet, uvit, mlp",
        ),
        ({"dtype": "half"}, 8, "model.dtype is 'half', expected .* float32, bfloat16"),
        ({"remat": "all"}, 8, "remat is 'all', expected .* none, full, dots, partial"),
        ({"blocks": (2,)}, 8, "model.channels and model.blocks have 2 and 1 entries"),
        ({"channels": (), "blocks": ()}, 8, r"model.channels has \(\), expected whole"),
        ({"blocks": (2, 0)}, 8, r"model.blocks has \(2, 0\), expected whole numbers"),
        ({"channels": (8.0, 16)}, 8, r"model.channels has \(8.0, 16\), expected whole"),
        ({"head_dim": 0}, 8, r"model.head_dim has \(0,\), expected whole numbers"),
        ({"dropout": 0.001}, 8, "model.dropout is 0.001, expected 0 or at least 1/256"),
        ({"dropout": 1.0}, 8, r"model.dropout is 1.0, expected in \[0, 1\)"),
        ({}, 9, "image size 9 is not divisible by 2"),
        ({}, 0, "image size 0 is not divisible by 2"),
        ({"channels": (8,) * 5, "blocks": (1,) * 5}, 8, "size 8 .* divisible by 16"),
        ({"name": "mlp"}, 8, r"model.channels is \(8, 16\), expected one number"),
        (MLP | {"attention_resolutions": (4,)}, 8, r"resolutions is \(4,\), .* \(\)"),
        (MLP | {"dropout_resolutions": (8,)}, 8, r"resolutions is \(8,\), .* \(\)"),
        (MLP | {"unrolled_resolutions": (8,)}, 8, r"resolutions is \(8,\), .* \(\)"),
        ({"channels": (8, 12)}, 8, "head_dim is 8, .* 12 channels .* of size 4"),
    ],
)
def test_bad_models_get_one_sentence(
    changes: dict[str, Any], size: int, sentence: str
) -> None:
    with pytest.raises(ValueError) as caught:
        check_model(SMALL | changes, size)
    assert re.search(sentence, str(caught.value))
    assert "\n" not in str(caught.value)
