"""Scenes of two or three handwritten digits, and the captions that describe them.

The canvas is cut into halves, so a digit has a cell of half its side. A scene is drawn
from a `numpy` generator alone: the same generator gives the same scene and caption.
"""

import dataclasses
import functools

import numpy as np
from PIL import Image

LAYOUTS = ("beside", "stacked", "two over one", "one over two")
"""Slots are counted in the order of reading: from left to right, then downwards."""

NUM_SLOTS = 3
ABSENT = 10
"""In the place of a digit where a scene of two has no third."""

WORDS = (
    *("zero", "one", "two", "three", "four"),
    *("five", "six", "seven", "eight", "nine"),
)
SIZES = (("small", "little"), ("large", "big"))
INKS = (("faint", "dim"), ("bright", "strong"))
GROUNDS = (("on black", "on a black ground"), ("on white", "on a white ground"))
INK_LEVELS = (0.5, 1.0)

# Upper left corners of the slots' cells, in half cells (row, column).
_CORNERS = (
    ((1, 0), (1, 2)),
    ((0, 1), (2, 1)),
    ((0, 0), (0, 2), (2, 1)),
    ((0, 1), (2, 0), (2, 2)),
)
_TEMPLATES = (
    ("{0} left of {1}", "{1} right of {0}", "{0} to the left of {1}"),
    ("{0} above {1}", "{1} below {0}", "{0} over {1}", "{1} under {0}"),
    ("{0} and {1} above {2}", "{2} below {0} and {1}", "{0} and {1} over {2}"),
    ("{0} above {1} and {2}", "{1} and {2} below {0}", "{0} over {1} and {2}"),
)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is on a canvas; tuples have one entry a slot.

    Attributes:
        layout: index into `LAYOUTS`.
        digits: 0 to 9.
        large, bright: whether each digit is.
        corners: (row, column) of each digit's upper left pixel.
        sides: of each digit, in pixels.
        on_white: dark ink on white; otherwise light ink on black.
    """

    layout: int
    digits: tuple[int, ...]
    large: tuple[bool, ...]
    bright: tuple[bool, ...]
    corners: tuple[tuple[int, int], ...]
    sides: tuple[int, ...]
    on_white: bool

    @property
    def is_held_out(self) -> bool:
        """Whether its first two digits, in its layout, are never trained on.

        A tenth of all: in each layout every digit, first or second, misses one partner.
        """
        return (self.digits[0] + 3 * self.digits[1] + self.layout) % 10 == 7


@dataclasses.dataclass(frozen=True)
class Caption:
    """A text and what it says besides digits and layout; tuples of one a slot."""

    text: str
    says_size: tuple[bool, ...]
    says_ink: tuple[bool, ...]
    says_ground: bool


def draw_scene(
    rng: np.random.Generator, size: int, held_out: bool | None = None
) -> Scene:
    """A scene on a canvas of `size` pixels, a multiple of 8.

    `held_out` True or False draws until it is one, or not; None takes the first.
    """
    while True:
        layout = int(rng.integers(len(LAYOUTS)))
        slots = _CORNERS[layout]
        digits = tuple(rng.integers(10, size=len(slots)).tolist())
        large = tuple((rng.random(len(slots)) < 0.5).tolist())
        bright = tuple((rng.random(len(slots)) < 0.5).tolist())
        half = size // 2
        sides = tuple(half if is_large else 2 * half // 3 + 1 for is_large in large)
        places = [
            (_place(rng, row, half, side), _place(rng, column, half, side))
            for (row, column), side in zip(slots, sides, strict=True)
        ]
        on_white = bool(rng.random() < 0.5)
        scene = Scene(layout, digits, large, bright, tuple(places), sides, on_white)
        if held_out is None or scene.is_held_out == held_out:
            return scene


def _place(rng: np.random.Generator, half_cells: int, half: int, side: int) -> int:
    """Where a digit begins: within its cell, which may move if it is in the middle."""
    start = half_cells * half // 2 + int(rng.integers(half - side + 1))
    if half_cells == 1:
        start += int(rng.integers(-(half // 4), half // 4 + 1))
    return start


def render(scene: Scene, size: int, handwriting: list[np.ndarray]) -> np.ndarray:
    """The picture, uint8 [size, size]; `handwriting` is uint8 [8, 8] for each slot."""
    canvas = np.zeros((size, size))
    rows = zip(handwriting, scene.corners, scene.sides, scene.bright, strict=True)
    for image, (top, left), side, is_bright in rows:
        part = canvas[top : top + side, left : left + side]
        np.maximum(part, INK_LEVELS[is_bright] * _resize(image, side), out=part)
    canvas = np.rint(canvas).astype(np.uint8)
    return 255 - canvas if scene.on_white else canvas


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    if side == len(image):
        return image
    how = Image.Resampling.BOX if side < len(image) else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((side, side), how))


def describe(scene: Scene, rng: np.random.Generator) -> Caption:
    """One of many captions: it always says the digits and where they are to each other,
    and of size, ink and ground each with a probability of 1/2, 1/4 and 1/4."""
    says_size = tuple((rng.random(len(scene.digits)) < 0.5).tolist())
    says_ink = tuple((rng.random(len(scene.digits)) < 0.25).tolist())
    says_ground = bool(rng.random() < 0.25)
    choose = functools.partial(_choose, rng)
    names = []
    for slot, digit in enumerate(scene.digits):
        words = [choose(INKS[scene.bright[slot]])] if says_ink[slot] else []
        words += [choose(SIZES[scene.large[slot]])] if says_size[slot] else []
        words.append(WORDS[digit])
        article = "an" if words[0] == "eight" else "a"
        names.append(" ".join([article, *words]))
    text = choose(_TEMPLATES[scene.layout]).format(*names)
    if says_ground:
        text += f", {choose(GROUNDS[scene.on_white])}"
    return Caption(text, says_size, says_ink, says_ground)


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
