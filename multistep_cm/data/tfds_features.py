"""Whether the features of a TFDS dataset are what a config says of them."""

import difflib
from collections.abc import Iterable

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from multistep_cm.errors import UserError


def check_image(config: ConfigDict, features: tfds.features.FeaturesDict) -> None:
    """Raise UserError unless `data.image_key` is of images that we can read."""
    key = config.image_key
    if key not in features:
        raise UserError(_missing_key(config, "data.image_key", features))
    feature = features[key]
    shape = feature.shape
    is_image = isinstance(feature, (tfds.features.Image, tfds.features.Tensor))
    if not is_image or len(shape) not in (2, 3):
        raise UserError(
            f"config key data.image_key is {key!r}, but that feature of dataset "
            f"{config.name!r} is no image: {feature!r}"
        )
    if feature.np_dtype != np.uint8:
        raise UserError(
            f"feature {key!r} of dataset {config.name!r} has type "
            f"{np.dtype(feature.np_dtype)}, expected images of uint8"
        )
    if len(shape) == 3 and shape[-1] not in (1, 3, None):
        raise UserError(
            f"feature {key!r} of dataset {config.name!r} has {shape[-1]} channels, "
            "expected 1 (grayscale) or 3 (RGB)"
        )


def check_label(config: ConfigDict, features: tfds.features.FeaturesDict) -> None:
    """Raise UserError unless `data.label_key` and `data.num_classes` fit together."""
    key, num_classes = config.label_key, config.num_classes
    if not key:
        if num_classes:
            raise UserError(
                f"config key data.label_key is empty, but data.num_classes is "
                f"{num_classes}: set the key, or data.num_classes = 0"
            )
        return
    if key not in features:
        message = _missing_key(config, "data.label_key", features)
        raise UserError(f"{message}; without labels set it to '', data.num_classes = 0")
    feature = features[key]
    is_scalar = isinstance(feature, tfds.features.Tensor) and feature.shape == ()
    if not is_scalar or not np.issubdtype(feature.np_dtype, np.integer):
        raise UserError(
            f"config key data.label_key is {key!r}, but that feature of dataset "
            f"{config.name!r} is no integer label: {feature!r}"
        )
    held = getattr(feature, "num_classes", None)
    if num_classes and held and held > num_classes:
        raise UserError(
            f"config key data.num_classes is {num_classes}, but label {key!r} of "
            f"dataset {config.name!r} has {held} classes: set data.num_classes = {held}"
        )


def check_text(config: ConfigDict, features: tfds.features.FeaturesDict) -> None:
    """Raise UserError unless `data.text_key` holds captions as `data.text` says."""
    if config.text == "none":
        return
    if config.text_key not in features:
        raise UserError(_missing_key(config, "data.text_key", features))
    feature = features[config.text_key]
    what = f"feature {config.text_key!r} of dataset {config.name!r}"
    if config.text == "bytes":
        if not isinstance(feature, tfds.features.Text):
            raise UserError(
                f"config key data.text is 'bytes', but {what} is no text: {feature!r}; "
                "set data.text_key to one that is"
            )
        return
    wanted = (config.text_length, config.text_width)
    is_float = np.issubdtype(feature.np_dtype, np.floating)
    if feature.shape != wanted or not is_float:
        raise UserError(
            f"{what} is {feature!r}, expected embeddings as floats of shape {wanted}: "
            "set data.text_length and data.text_width to what it holds"
        )
    if config.text_mask_key not in features:
        message = _missing_key(config, "data.text_mask_key", features)
        raise UserError(f"{message}; embeddings need a mask of those that are there")
    mask = features[config.text_mask_key]
    if mask.shape != wanted[:1] or mask.np_dtype != np.bool_:
        raise UserError(
            f"feature {config.text_mask_key!r} of dataset {config.name!r} is {mask!r}, "
            f"expected a mask of bool in shape {wanted[:1]}"
        )


def _missing_key(
    config: ConfigDict, config_key: str, features: tfds.features.FeaturesDict
) -> str:
    held = config_key.removeprefix("data.")
    key = config[held]
    near = difflib.get_close_matches(key, list(features), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return (
        f"config key {config_key} is {key!r}, which dataset {config.name!r} does not "
        f"have{hint}; it has {listed(features)}"
    )


def listed(names: Iterable[str]) -> str:
    """Names in quotes, for a sentence."""
    return ", ".join(repr(name) for name in names) or "none"
