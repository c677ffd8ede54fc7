"""The handwritten digits that ship inside scikit-learn, as a TFDS dataset."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NUM_TEST = 297

DESCRIPTION = """
1,797 grayscale images of 8x8 pixels of the handwritten digits 0 to 9: the test part of
"Optical Recognition of Handwritten Digits" (UCI), as scikit-learn ships it. Pixels of 0
to 16 are scaled to 0 to 255. Every sixth image or so in the order of the classes is in
`test` (297), the others in `train` (1,500), so both have the same share of each class.
"""

CITATION = """
@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49}
}
"""

HOMEPAGE = "https://archive.ics.uci.edu/dataset/80"


def digits_arrays() -> tuple[np.ndarray, np.ndarray]:
    """All images, uint8 [1797, 8, 8], and labels, int64 [1797], of scikit-learn."""
    # Imported here: scikit-learn takes a second, and prepared data need none of it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Which examples are in `train` and in `test`: stratified, without randomness."""
    by_class = np.argsort(labels, kind="stable")
    is_test = np.zeros(len(labels), bool)
    is_test[by_class[np.arange(NUM_TEST) * len(labels) // NUM_TEST]] = True
    return {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}


class Digits8(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits of 8x8 pixels: 1,500 to train, 297 to test, no download."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage=HOMEPAGE,
            citation=CITATION,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        images, labels = digits_arrays()
        return {
            split: self._generate_examples(images, labels, indices)
            for split, indices in split_indices(labels).items()
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in indices.tolist():
            # PNG bytes: TFDS would encode an array with TensorFlow.
            png = io.BytesIO()
            Image.fromarray(images[index]).save(png, "PNG")
            yield index, {"image": png.getvalue(), "label": int(labels[index])}
