"""One pass over a mesh against numpy over all features at once."""

import numpy as np
import pytest

from multistep_cm.evaluation import activations as module
from multistep_cm.evaluation import inception_score
from multistep_cm.evaluation.activations import Extractor, activations
from multistep_cm.evaluation.inception_score import SPLIT, ScoreSums
from multistep_cm.sharding.mesh import make_mesh
from tests.evaluation import tiny


def direct_score(logits: np.ndarray, split: int) -> float:
    """The definition: p log p - p log q, image by image."""
    scores = []
    for start in range(0, len(logits), split):
        p = np.exp(logits[start : start + split])
        p /= p.sum(axis=1, keepdims=True)
        kl = (p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1)
        scores.append(np.exp(kl.mean()))
    return float(np.mean(scores))


@pytest.mark.parametrize(
    ("mesh", "count"),
    [((8, 1, 1), 100), ((2, 2, 2), 37), ((1, 1, 8), 5), ((4, 2, 1), 3)],
)
def test_one_pass_equals_all_at_once(
    mesh: tuple[int, int, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IMAGES_PER_PART", 3)
    monkeypatch.setattr(inception_score, "SPLIT", 10)
    images = tiny.make_images(count)
    params = tiny.make_params(48)
    sizes = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))
    extractor = Extractor(tiny.taps, params, make_mesh(sizes))
    keep = np.arange(0, count, 2)
    done: list[int] = []
    found = activations(extractor, images.__getitem__, count, keep, done.append)
    expected = tiny.expected(params, images)
    for name, moments in (("2048", found.pool), ("spatial", found.spatial)):
        values = expected[name]
        assert moments.count == count
        assert moments.mean.dtype == moments.scatter.dtype == np.float64
        np.testing.assert_allclose(moments.mean, values.mean(axis=0), atol=1e-5)
        covariance = np.cov(values, rowvar=False)
        np.testing.assert_allclose(moments.covariance, covariance, rtol=1e-5, atol=1e-6)
    score = direct_score(expected["logits_unbiased"], 10)
    assert found.inception_score == pytest.approx(score, rel=1e-5)
    np.testing.assert_allclose(found.kept, expected["2048"][keep], atol=1e-5)
    assert found.kept.dtype == np.float32
    assert done[-1] == count
    assert done == sorted(done)


def test_a_device_reads_its_own_images_only() -> None:
    images = tiny.make_images(16)
    asked: list[np.ndarray] = []

    def read(indices: np.ndarray) -> np.ndarray:
        asked.append(indices)
        return images[indices]

    mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    extractor = Extractor(tiny.taps, tiny.make_params(48), mesh)
    activations(extractor, read, 16, np.arange(0))
    # Once the first image, for its shape.
    assert sorted(np.concatenate(asked).tolist()) == [0, *range(16)]


def test_score_of_certain_and_of_equal_answers() -> None:
    """Certain and balanced over n classes: n. The same answer for all images: 1."""
    certain = 100.0 * np.eye(4)[np.arange(8) % 4]
    sums = ScoreSums(8, 4, 5000)
    sums.add(np.arange(5), certain[:5])
    sums.add(np.arange(5, 8), certain[5:])
    assert sums.score() == pytest.approx(4.0, rel=1e-12)
    sums = ScoreSums(8, 4, 5000)
    sums.add(np.arange(8), np.tile([1.0, 2.0, 0.0, -1.0], (8, 1)))
    assert sums.score() == pytest.approx(1.0, rel=1e-12)


def test_score_is_the_mean_over_splits_in_order() -> None:
    logits = np.random.default_rng(0).standard_normal((25, 7)) * 4
    sums = ScoreSums(25, 7, split=10)
    for part in np.split(np.random.default_rng(1).permutation(25), [3, 4, 20]):
        sums.add(part, logits[part].astype(np.float64))
    assert sums.score() == pytest.approx(direct_score(logits, 10), rel=1e-12)
    assert SPLIT == 5000
