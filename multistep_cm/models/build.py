"""From the config keys `model.*` to a network."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from multistep_cm.models.dropout import rounded
from multistep_cm.models.layers import BlockOptions
from multistep_cm.models.level import REMAT_POLICIES, Ready
from multistep_cm.models.mlp import ResidualMLP
from multistep_cm.models.text import TextKind, TextOptions
from multistep_cm.models.trunk import Trunk
from multistep_cm.models.unet import ResNetAttentionBlock
from multistep_cm.models.uvit import TransformerBlock

ATTENTION_BLOCKS: Mapping[str, Callable[..., nn.Module]] = {
    "unet": ResNetAttentionBlock,
    "uvit": TransformerBlock,
}
"""The block of the levels with attention; the one thing that a model's name decides
besides the position embedding."""

NAMES = (*ATTENTION_BLOCKS, "mlp")

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build_network(
    model_config: Mapping[str, Any],
    image_channels: int,
    num_classes: int,
    ready: Ready | None = None,
    text: TextKind = "none",
    is_guided: bool = False,
) -> Trunk | ResidualMLP:
    """The linen module of `model.*`; call it as `trunk.Trunk.__call__` says.

    num_classes = 0 makes a network without classes; `text` says what captions are given
    as; `is_guided` networks read the scale of guidance; `ready` is `level.Level`'s.
    Check the config by `check_model` first: here a wrong value is a KeyError or comes
    out as a wrong network.
    """
    model = model_config
    if model["name"] == "mlp":
        return _build_mlp(model, num_classes, ready, is_guided)
    return Trunk(
        attention_block=ATTENTION_BLOCKS[model["name"]],
        position_embedding=model["name"] == "uvit",
        channels=tuple(model["channels"]),
        blocks=tuple(model["blocks"]),
        attention_resolutions=tuple(model["attention_resolutions"]),
        head_dim=model["head_dim"],
        mlp_ratio=model["mlp_ratio"],
        condition_width=model["condition_width"],
        dropout=model["dropout"],
        dropout_resolutions=tuple(model["dropout_resolutions"]),
        unrolled_resolutions=tuple(model["unrolled_resolutions"]),
        dtype=DTYPES[model["dtype"]],
        remat=model["remat"],
        scan_blocks=model["scan_blocks"],
        image_channels=image_channels,
        num_classes=num_classes,
        text=TextOptions(
            text, model["text_width"], model["text_blocks"], model["text_head_dim"]
        ),
        is_guided=is_guided,
        ready=ready,
    )


def _build_mlp(
    model: Mapping[str, Any], num_classes: int, ready: Ready | None, is_guided: bool
) -> ResidualMLP:
    options = BlockOptions(
        channels=model["channels"][0],
        head_dim=model["head_dim"],
        mlp_ratio=model["mlp_ratio"],
        dropout=model["dropout"],
        dtype=DTYPES[model["dtype"]],
        train=False,
    )
    return ResidualMLP(
        options=options,
        count=model["blocks"][0],
        condition_width=model["condition_width"],
        remat=model["remat"],
        scan_blocks=model["scan_blocks"],
        num_classes=num_classes,
        is_guided=is_guided,
        ready=ready,
    )


def check_model(model_config: Mapping[str, Any], image_size: int) -> None:
    """Raise ValueError, in one sentence, for the first value that makes no network."""
    model = model_config
    _check_choice("model.name", model["name"], NAMES)
    _check_choice("model.dtype", model["dtype"], DTYPES)
    _check_choice("model.remat", model["remat"], ("none", *REMAT_POLICIES))
    for key in ("channels", "blocks"):
        _check_whole(key, model[key])
    widths = ("head_dim", "mlp_ratio", "condition_width")
    for key in (*widths, "text_width", "text_blocks", "text_head_dim"):
        _check_whole(key, (model[key],))
    if model["text_width"] % model["text_head_dim"]:
        raise ValueError(
            f"config key model.text_head_dim is {model['text_head_dim']}, which does "
            f"not divide model.text_width = {model['text_width']}"
        )
    channels, levels = model["channels"], len(model["channels"])
    if len(model["blocks"]) != levels:
        raise ValueError(
            f"config keys model.channels and model.blocks have {levels} and "
            f"{len(model['blocks'])} entries, expected as many of each: one for every "
            "resolution"
        )
    if not 0 <= model["dropout"] < 1:
        raise ValueError(
            f"config key model.dropout is {model['dropout']}, expected in [0, 1)"
        )
    if model["dropout"] and not rounded(model["dropout"]):
        raise ValueError(
            f"config key model.dropout is {model['dropout']}, expected 0 or at least "
            "1/256, the step between rates"
        )
    if model["name"] == "mlp":
        _check_mlp(model)
    factor = 2 ** (levels - 1)
    if image_size < factor or image_size % factor:
        raise ValueError(
            f"image size {image_size} is not divisible by {factor}, but model.channels "
            f"has {levels} levels and each but the last halves the image"
        )
    for i, count in enumerate(channels):
        size = image_size >> i
        if size in model["attention_resolutions"] and count % model["head_dim"]:
            raise ValueError(
                f"config key model.head_dim is {model['head_dim']}, which does not "
                f"divide the {count} channels of the attention level of size {size}"
            )


def _check_mlp(model: Mapping[str, Any]) -> None:
    """Nothing of the config may be without effect."""
    for key in ("channels", "blocks"):
        if len(model[key]) != 1:
            raise ValueError(
                f"config key model.{key} is {model[key]}, expected one number: an mlp "
                "has one width and one row of blocks"
            )
    for key in ("attention", "dropout", "unrolled"):
        key += "_resolutions"
        if model[key]:
            raise ValueError(
                f"config key model.{key} is {model[key]}, expected (): an mlp has no "
                "feature maps"
            )


def _check_choice(key: str, value: Any, choices: Any) -> None:
    if value not in choices:
        raise ValueError(
            f"config key {key} is {value!r}, expected one of: {', '.join(choices)}"
        )


def _check_whole(key: str, values: Any) -> None:
    if not values or not all(isinstance(v, int) and v >= 1 for v in values):
        raise ValueError(
            f"config key model.{key} has {values}, expected whole numbers of at least 1"
        )


def count_parameters(tree: Any) -> int:
    """Numbers in all leaves of a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
