"""Scenes of digits: what is drawn, what captions say of it, and what is on disk."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from multistep_cm.data.builders import catalog, digit_scenes, scenes
from multistep_cm.data.builders.scenes import ABSENT, Scene, describe, draw_scene
from multistep_cm.errors import UserError

NUMBERS = {"train": 60, "test": 20, "held_out": 20}


@pytest.fixture(scope="session")
def scene_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TFDS data_dir with a few scenes of both sizes."""
    directory = str(tmp_path_factory.mktemp("scenes"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digit_scenes, "NUM_EXAMPLES", NUMBERS)
        for size in (16, 24):
            catalog.open_builder(f"digit_scenes/{size}x{size}", directory)
    return directory


def drawn(size: int, number: int = 400, **asked: bool) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [draw_scene(rng, size, **asked) for _ in range(number)]


def scene(layout: int, digits: tuple[int, ...], **changes: Any) -> Scene:
    count = len(digits)
    values: dict[str, Any] = {
        "large": (False,) * count,
        "bright": (True,) * count,
        "corners": ((0, 0),) * count,
        "sides": (6,) * count,
        "on_white": False,
    }
    return Scene(layout=layout, digits=digits, **{**values, **changes})


@pytest.mark.parametrize("size", [16, 24])
def test_digits_are_apart_where_the_layout_says(size: int) -> None:
    for one in drawn(size):
        boxes = list(zip(one.corners, one.sides, strict=True))
        for (top, left), side in boxes:
            assert 0 <= top <= size - side
            assert 0 <= left <= size - side
        for ((a, b), s), ((c, d), t) in itertools.combinations(boxes, 2):
            assert a + s <= c or c + t <= a or b + s <= d or d + t <= b
        centres = np.array([(a + s / 2, b + s / 2) for (a, b), s in boxes])
        down, right = (centres[1] - centres[0]).tolist()
        layout = scenes.LAYOUTS[one.layout]
        assert len(boxes) == (2 if layout in ("beside", "stacked") else 3)
        if layout in ("beside", "two over one"):
            assert right > abs(down)
        else:
            assert down > abs(right) or layout == "one over two"
        if layout == "two over one":
            assert (centres[2, 0] > centres[:2, 0]).all()
        if layout == "one over two":
            assert (centres[0, 0] < centres[1:, 0]).all()
            assert centres[1, 1] < centres[2, 1]


def test_large_digits_fill_a_half_and_small_ones_do_not() -> None:
    for size, small in ((16, 6), (24, 9)):
        sides = {
            pair for s in drawn(size) for pair in zip(s.large, s.sides, strict=True)
        }
        assert sides == {(True, size // 2), (False, small)}


def test_a_tenth_is_held_out_and_nothing_is_never_seen() -> None:
    for layout in range(4):
        pairs = [
            (a, b)
            for a, b in itertools.product(range(10), repeat=2)
            if scene(layout, (a, b)).is_held_out
        ]
        for position in (0, 1):
            assert sorted(pair[position] for pair in pairs) == list(range(10))
    assert all(s.is_held_out for s in drawn(16, 50, held_out=True))
    assert not any(s.is_held_out for s in drawn(16, 300, held_out=False))
    assert 0.05 < np.mean([s.is_held_out for s in drawn(16, 1000)]) < 0.15


def test_a_picture_is_its_digits() -> None:
    rng = np.random.default_rng(1)
    pens = [rng.integers(1, 256, size=(8, 8), dtype=np.uint8) for _ in range(2)]
    asked = {"sides": (8, 8), "large": (True, True), "corners": ((3, 0), (5, 8))}
    one = scene(0, (3, 7), bright=(True, False), **asked)
    picture = scenes.render(one, 16, pens)
    np.testing.assert_array_equal(picture[3:11, :8], pens[0])
    np.testing.assert_allclose(picture[5:13, 8:], pens[1] / 2, atol=0.5)
    picture[3:11, :8] = picture[5:13, 8:] = 0
    assert not picture.any()
    white = scenes.render(scene(0, (3, 7), on_white=True, **asked), 16, pens)
    np.testing.assert_array_equal(white[3:11, :8], 255 - pens[0])


def test_small_digits_are_their_reduction() -> None:
    pen = np.full((8, 8), 200, np.uint8)
    picture = scenes.render(scene(0, (1, 1), corners=((0, 0), (8, 8))), 16, [pen] * 2)
    assert (picture > 0).sum() == 2 * 36
    assert set(np.unique(picture)) == {0, 200}


def test_captions_say_what_is_there() -> None:
    """Read back by words, with the order that each phrase means."""
    rng = np.random.default_rng(2)
    texts = set()
    for one in drawn(16, 600):
        caption = describe(one, rng)
        texts.add(caption.text)
        words = caption.text.replace(",", "").split()
        named = [scenes.WORDS.index(word) for word in words if word in scenes.WORDS]
        turned = bool({"below", "right", "under"} & set(words))
        expected = one.digits
        if turned:
            count = 1 if scenes.LAYOUTS[one.layout] in ("beside", "stacked") else 0
            first = {"two over one": 2, "one over two": 1}
            count = count or first[scenes.LAYOUTS[one.layout]]
            expected = (*expected[count:], *expected[:count])
        assert tuple(named) == expected, caption.text
        bright = {"bright", "strong"} & set(words)
        faint = {"faint", "dim"} & set(words)
        assert bool(bright or faint) == any(caption.says_ink)
        assert bool({"white", "black"} & set(words)) == caption.says_ground
        assert ("white" in words) == (caption.says_ground and one.on_white)
        for slot, says in enumerate(caption.says_size):
            if says and len(set(one.large)) == 1:
                assert bool({"large", "big"} & set(words)) == one.large[slot]
        assert " a eight" not in f" {caption.text}"
    assert len(texts) > 500
    assert max(map(len, texts)) <= 96


def test_a_generator_decides_everything() -> None:
    def all_of(seed: int) -> list[Any]:
        rng = np.random.default_rng(seed)
        return [(s, describe(s, rng)) for s in (draw_scene(rng, 16) for _ in range(20))]

    assert all_of(3) == all_of(3)
    assert all_of(3) != all_of(4)


@pytest.mark.parametrize("size", [16, 24])
def test_the_splits_on_disk(scene_directory: str, size: int) -> None:
    builder = catalog.open_builder(f"digit_scenes/{size}x{size}", scene_directory)
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert counts == NUMBERS
    for split in NUMBERS:
        for record in builder.as_data_source(split):
            assert record["image"].shape == (size, size, 1)
            digits = tuple(int(d) for d in record["digits"] if d != ABSENT)
            one = scene(int(record["layout"]), digits)
            assert one.is_held_out == (split == "held_out")
            text = record["caption"].decode()
            assert all(scenes.WORDS[digit] in text for digit in digits)
            # Ink lies within the boxes of the digits.
            ink = record["image"][..., 0] != (255 if record["on_white"] else 0)
            for (top, left), side in zip(
                record["corners"], record["sides"], strict=True
            ):
                ink[top : top + side, left : left + side] = False
            assert not ink.any()


def test_splits_are_of_different_handwriting() -> None:
    train, test = (digit_scenes.Handwriting(split) for split in ("train", "test"))
    rng = np.random.default_rng(0)
    seen = {train.draw(rng, (4,))[0].tobytes() for _ in range(2000)}
    assert len(seen) > 100
    assert not any(test.draw(rng, (4,))[0].tobytes() in seen for _ in range(200))


def test_the_counts_are_those_that_are_described(scene_directory: str) -> None:
    info = catalog.open_builder("digit_scenes", scene_directory).info
    assert info.config_name == "16x16"
    assert digit_scenes.NUM_EXAMPLES == {
        "train": 24_000,
        "test": 2000,
        "held_out": 2000,
    }
    for number in ("24,000", "2,000"):
        assert number in info.description
    assert info.file_format == tfds.core.FileFormat.ARRAY_RECORD


def test_a_size_that_there_is_not(tmp_path: Path) -> None:
    message = "expected digit_scenes/16x16, digit_scenes/24x24"
    with pytest.raises(UserError, match=message):
        catalog.open_builder("digit_scenes/17x17", str(tmp_path))
