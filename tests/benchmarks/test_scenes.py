"""What is measured of scenes, on answers that are known; the table and judgement."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.scenes import classifier, measures, models, run, text
from benchmarks.scenes.models import MODELS, SCALES, Settings
from benchmarks.scenes.truth import SPLITS, Scenes
from multistep_cm.config import load_config
from multistep_cm.validation import validate

SETTINGS = Settings(Path("w"), 1, 64, 10, 1, 1, 2)


def scenes() -> Scenes:
    """Two scenes: "a big three above a seven", and three digits of no size said."""
    return Scenes(
        images=np.zeros((2, 16, 16, 1), np.uint8),
        captions=["a big three above a seven", "a one and a two above a four"],
        layout=np.array([1, 2]),
        digits=np.array([[3, 7, 10], [1, 2, 4]]),
        large=np.array([[True, False, False], [False, False, True]]),
        says_size=np.array([[True, False, False], [False, False, False]]),
    )


def answers(**changes: object) -> dict[str, np.ndarray]:
    one = scenes()
    right = {"layout": one.layout, "digits": one.digits, "large": one.large}
    return {**right, **{key: np.array(value) for key, value in changes.items()}}


def test_all_that_is_said_is_counted() -> None:
    row = measures.caption_accuracy(answers(), scenes())
    assert set(row.values()) == {1.0}
    # What is not said may be anything.
    other = [[True, True, True], [True, True, False]]
    row = measures.caption_accuracy(answers(large=other), scenes())
    assert set(row.values()) == {1.0}


@pytest.mark.parametrize(
    ("changes", "key", "share", "right"),
    [
        ({"digits": [[3, 7, 10], [1, 2, 5]]}, "digits", 4 / 5, 7 / 8),
        ({"layout": [0, 2]}, "positions", 1 / 2, 7 / 8),
        ({"large": [[False] * 3, [False] * 3]}, "sizes", 0.0, 7 / 8),
        ({"digits": [[3, 7, 6], [1, 2, 4]]}, "captions", 1 / 2, 1.0),
    ],
)
def test_one_mistake(
    changes: dict[str, object], key: str, share: float, right: float
) -> None:
    row = measures.caption_accuracy(answers(**changes), scenes())
    assert row[key] == pytest.approx(share)
    assert row["said"] == pytest.approx(right)
    assert row["captions"] == pytest.approx(1 / 2)
    others = set(row) - {key, "said", "captions"}
    assert all(row[other] == 1 for other in others)


@pytest.mark.slow
def test_images_are_far_from_others_and_near_themselves() -> None:
    rng = np.random.default_rng(0)
    real = scenes()
    many = Scenes(
        images=rng.integers(256, size=(80, 16, 16, 1), dtype=np.uint8),
        captions=["a"] * 80,
        layout=np.resize(real.layout, 80),
        digits=np.resize(real.digits, (80, 3)),
        large=np.resize(real.large, (80, 3)),
        says_size=np.resize(real.says_size, (80, 3)),
    )
    network = classifier.Network()
    trained = classifier.Classifier(classifier.train_classifier(network, many, 1))
    reference = measures.reference_moments(trained, many)
    assert np.trace(reference[0].covariance) == pytest.approx(1, rel=0.05)
    same = measures.measure(trained, many.images, many, reference)
    other = measures.measure(trained, many.images // 8, many, reference)
    assert same["fd"] < 1e-6 < other["fd"]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_model_is_a_config(model: models.Model) -> None:
    steps = f",steps={model.steps}" if model.steps else ""
    config = load_config(
        f"{models.CONFIG}:stage={model.stage}{steps}", {"teacher.workdir": "T"}
    )
    validate(config)
    told = config.consistency.guidance_range
    if model.stage == "teacher":
        assert not told
    else:
        assert all(told[0] <= scale <= told[1] for scale in SCALES)
    if model.steps:
        assert config.consistency.student_steps == model.steps


def test_the_table_judges_students_against_their_teacher() -> None:
    found = {}
    for model in MODELS:
        for kind in SPLITS:
            for scale in SCALES:
                key = run.row_key(SETTINGS, model, kind, scale)
                assert key == text.key_of(SETTINGS, model, kind, scale)
                row = dict.fromkeys(text.COLUMNS, 0.8)
                found[key] = row | {"fd": 0.1}
    slow = run.row_key(SETTINGS, MODELS[2], "held-out", 3.0)
    found[slow] |= {"said": 0.7, "fd": 0.2}
    table = text.tables(found, SETTINGS)
    assert table.count("| CD | 8 |") == len(SPLITS) * len(SCALES)
    assert "- 8 steps, guidance 3: 100.0 % of its caption accuracy" in table
    assert (
        "16 steps, guidance 3: 87.5 % of its caption accuracy (wanted 97: missed)"
        in (table)
    )
    assert "2.00 x its FD (wanted 1.25: missed)" in table
    assert table.count("missed") == 2
