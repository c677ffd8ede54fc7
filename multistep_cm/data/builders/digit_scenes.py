"""Scenes of handwritten digits with captions in English, as a TFDS dataset."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from multistep_cm.data.builders import digits8, scenes

NUM_EXAMPLES = {"train": 24_000, "test": 2000, "held_out": 2000}

DESCRIPTION = """
Scenes of two or three of the handwritten digits that scikit-learn ships (`digits8`), on
a canvas of 16x16 or 24x24 pixels, with a caption such as "a bright three above a small
seven, on white". Layout, digits, sizes, ink, ground and places are drawn at random;
captions always say digits and layout, the rest now and then, in several phrasings.
`train` (24,000) is made of the training digits of `digits8`, `test` and `held_out`
(2,000 each) of its test digits. In each layout every digit, first or second, has one
partner with which it is only in `held_out`, never in the other splits. What is in a
scene is stored beside it. Everything is drawn from fixed seeds.
"""


class SceneConfig(tfds.core.BuilderConfig):
    """A size of the canvas, in pixels."""

    def __init__(self, size: int) -> None:
        text = f"Scenes on a canvas of {size}x{size} pixels."
        super().__init__(name=f"{size}x{size}", description=text)
        self.size = size


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """Pictures of two or three digits with captions: 24,000 to train, no download."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [SceneConfig(16), SceneConfig(24)]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        size, slots = self.builder_config.size, (scenes.NUM_SLOTS,)

        def numbers(dtype: type, *shape: int) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=shape, dtype=dtype)

        features = {
            "image": tfds.features.Image(shape=(size, size, 1)),
            "caption": tfds.features.Text(),
            "layout": tfds.features.ClassLabel(names=list(scenes.LAYOUTS)),
            "digits": numbers(np.int32, *slots),
            "large": numbers(np.bool_, *slots),
            "bright": numbers(np.bool_, *slots),
            "corners": numbers(np.int32, *slots, 2),
            "sides": numbers(np.int32, *slots),
            "on_white": numbers(np.bool_),
            "says_size": numbers(np.bool_, *slots),
            "says_ink": numbers(np.bool_, *slots),
            "says_ground": numbers(np.bool_),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("caption", "image"),
            homepage=digits8.HOMEPAGE,
            citation=digits8.CITATION,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in NUM_EXAMPLES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        size = self.builder_config.size
        rng = np.random.default_rng([size, list(NUM_EXAMPLES).index(split)])
        pens = Handwriting("train" if split == "train" else "test")
        for index in range(NUM_EXAMPLES[split]):
            scene = scenes.draw_scene(rng, size, held_out=split == "held_out")
            image = scenes.render(scene, size, pens.draw(rng, scene.digits))
            # PNG bytes: TFDS would encode an array with TensorFlow.
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            caption = scenes.describe(scene, rng)
            yield index, {"image": png.getvalue(), **truth(scene, caption)}


class Handwriting:
    """The digits of one split of `digits8`, by class."""

    def __init__(self, split: str) -> None:
        images, labels = digits8.digits_arrays()
        chosen = digits8.split_indices(labels)[split]
        self._images = images
        self._of_class = [chosen[labels[chosen] == digit] for digit in range(10)]

    def draw(
        self, rng: np.random.Generator, digits: tuple[int, ...]
    ) -> list[np.ndarray]:
        """One example of each digit, uint8 [8, 8]."""
        chosen = [self._of_class[digit] for digit in digits]
        return [self._images[rng.choice(indices)] for indices in chosen]


def truth(scene: scenes.Scene, caption: scenes.Caption) -> dict[str, Any]:
    """The features beside the image: three slots, the last filled up in scenes of two
    (digit `scenes.ABSENT`, everything else 0)."""

    def slots(values: tuple[Any, ...], fill: Any, dtype: type) -> np.ndarray:
        missing = (fill,) * (scenes.NUM_SLOTS - len(values))
        return np.array((*values, *missing), dtype)

    return {
        "caption": caption.text,
        "layout": scene.layout,
        "digits": slots(scene.digits, scenes.ABSENT, np.int32),
        "large": slots(scene.large, False, np.bool_),
        "bright": slots(scene.bright, False, np.bool_),
        "corners": slots(scene.corners, (0, 0), np.int32),
        "sides": slots(scene.sides, 0, np.int32),
        "on_white": np.bool_(scene.on_white),
        "says_size": slots(caption.says_size, False, np.bool_),
        "says_ink": slots(caption.says_ink, False, np.bool_),
        "says_ground": np.bool_(caption.says_ground),
    }
