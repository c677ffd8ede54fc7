"""Whether images are what their captions say, and how far they are from real ones."""

from typing import TypeAlias

import numpy as np

from benchmarks.scenes.classifier import Answers, Classifier
from benchmarks.scenes.truth import Scenes
from multistep_cm.evaluation.frechet import Moments, frechet_distance

Row: TypeAlias = dict[str, float]


def caption_accuracy(answers: Answers, scenes: Scenes) -> Row:
    """Shares of what captions say that the answers agree with.

    `digits`: of the digits, each in its place; `positions`: of the layouts; `sizes`: of
    the sizes that are said; `said`: of all these statements together; `captions`: of
    captions, those of which everything is right.
    """
    there = scenes.digits < 10
    digits = answers["digits"] == scenes.digits
    layout = answers["layout"] == scenes.layout
    sizes = answers["large"] == scenes.large
    says_size = scenes.says_size & there
    right = (digits & there).sum() + layout.sum() + (sizes & says_size).sum()
    whole = (
        (digits | ~there).all(-1)
        & layout
        & (sizes | ~says_size).all(-1)
        # A third digit where none was asked for is wrong too.
        & (digits | there).all(-1)
    )
    return {
        "digits": float(digits[there].mean()),
        "positions": float(layout.mean()),
        "sizes": float(sizes[says_size].mean()),
        "said": float(right / (there.sum() + layout.size + says_size.sum())),
        "captions": float(whole.mean()),
    }


def reference_moments(
    classifier: Classifier, scenes: Scenes
) -> tuple[Moments, np.ndarray]:
    """Of real scenes, with each feature scaled to variance 1/32; and that scale."""
    _, features = classifier.read(scenes.images)
    scale = 1 / (features.std(0) * np.sqrt(features.shape[1]) + 1e-6)
    return Moments.of(features * scale), scale


def measure(
    classifier: Classifier,
    images: np.ndarray,
    scenes: Scenes,
    reference: tuple[Moments, np.ndarray],
) -> Row:
    """`caption_accuracy` of images made from the captions of scenes, and `fd`."""
    answers, features = classifier.read(images)
    moments, scale = reference
    distance = frechet_distance(Moments.of(features * scale), moments)
    return {**caption_accuracy(answers, scenes), "fd": distance}
