"""Measures of samples whose answers are known: the data itself, and changes of it."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from multistep_cm.errors import UserError
from multistep_cm.evaluation import measure as measure_module
from multistep_cm.evaluation.classifier import TrainingSettings, train_classifier
from multistep_cm.evaluation.features import Classifier, features_and_logits
from multistep_cm.evaluation.measure import Reference, make_reference, measure

Digits = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = load_digits()
    images = (data.images * (255 / 16)).astype(np.uint8)[..., None]
    return images[:600], data.target[:600].astype(np.int32)


@pytest.fixture(scope="module")
def classifier(digits: Digits) -> Classifier:
    settings = TrainingSettings(num_steps=120, batch_size=50)
    return train_classifier(*digits, *digits, 10, 0, settings)


@pytest.fixture(scope="module")
def reference(digits: Digits, classifier: Classifier) -> Reference:
    return make_reference(classifier, *digits)


def test_the_data_itself_is_perfect(
    digits: Digits, classifier: Classifier, reference: Reference
) -> None:
    images, labels = digits
    found = measure(classifier, reference, images, labels)
    assert found["num_images"] == 600
    assert found["frechet_distance"] < 1e-9
    assert found["pixel_frechet_distance"] < 1e-9
    assert found["variance_ratio"] == pytest.approx(1, rel=1e-12)
    assert found["class_accuracy"] == reference.class_accuracy
    assert found["class_accuracy"] > 0.9


def test_accuracy_counts_the_classes_asked_for(
    digits: Digits, classifier: Classifier, reference: Reference
) -> None:
    images, _ = digits
    _, logits = features_and_logits(classifier, images)
    asked = logits.argmax(axis=1)
    asked[:150] = (asked[:150] + 1) % 10
    assert measure(classifier, reference, images, asked)["class_accuracy"] == 0.75
    assert measure(classifier, reference, images)["class_accuracy"] is None


def test_half_the_contrast_has_closed_forms(
    digits: Digits, classifier: Classifier, reference: Reference
) -> None:
    images = digits[0] // 2 * 2
    whole = make_reference(classifier, images)
    found = measure(classifier, whole, images // 2)
    assert found["variance_ratio"] == pytest.approx(0.25, rel=1e-12)
    # N(m, S) against N(m/2, S/4): |m|^2/4 + tr(S)/4, as a share of tr(S).
    pixels = images.reshape(600, -1).astype(np.float64)
    spread = pixels.var(axis=0, ddof=1).sum()
    expected = 0.25 * (pixels.mean(axis=0) ** 2).sum() / spread + 0.25
    assert found["pixel_frechet_distance"] == pytest.approx(expected, rel=1e-9)
    assert whole.floor is not None
    assert found["frechet_distance"] > 5 * whole.floor


def test_floor_is_the_distance_between_halves(
    digits: Digits, classifier: Classifier, reference: Reference
) -> None:
    images, _ = digits
    order = np.random.default_rng(99).permutation(600)
    half = make_reference(classifier, images[order[:300]])
    other = measure(classifier, half, images[order[300:]])
    assert reference.floor is not None
    assert 0.5 < other["frechet_distance"] / reference.floor < 2
    assert 0.5 < other["pixel_frechet_distance"] / reference.pixel_floor < 2
    assert make_reference(classifier, images).floor == reference.floor


def test_without_a_classifier_pixels_remain(digits: Digits) -> None:
    images, _ = digits
    found = measure(None, make_reference(None, images), images[:300])
    assert found["frechet_distance"] is None
    assert found["class_accuracy"] is None
    assert 0 < found["pixel_frechet_distance"] < 0.5


@pytest.mark.parametrize("side", [3, 8, 11, 16])
def test_large_images_are_reduced_by_area(side: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, side, side, 2), np.uint8)
    found = measure_module._pixel_features(images)
    small = min(side, 8)
    assert found.shape == (5, small * small * 2)
    # Repeating each pixel makes areas exact: cells of `side` of the repeated pixels.
    fine = images.repeat(small, axis=1).repeat(small, axis=2) / 255.0
    cells = fine.reshape(5, small, side, small, side, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(found, cells.reshape(5, -1), rtol=1e-12)


def test_variance_in_chunks_is_that_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "_CHUNK", 7)
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), np.uint8)
    expected = images.astype(np.float64).var(axis=0, ddof=1).sum()
    found = measure_module._total_variance(images)
    assert found == pytest.approx(expected, rel=1e-12)


def test_bad_input_is_one_sentence(
    digits: Digits, classifier: Classifier, reference: Reference
) -> None:
    images, labels = digits
    with pytest.raises(UserError, match="more than 64 samples; there are 64"):
        measure(classifier, reference, images[:64])
    with pytest.raises(UserError, match="as many labels"):
        measure(classifier, reference, images[:100], labels[:99])
    with pytest.raises(UserError, match="uint8"):
        measure(classifier, reference, images / 255.0)
    with pytest.raises(UserError, match="all the same"):
        make_reference(None, np.zeros((100, 8, 8, 1), np.uint8))
    with pytest.raises(UserError, match="more than 64 samples"):
        make_reference(classifier, images[:120])
