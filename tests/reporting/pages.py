"""A report of invented runs, and what tests read in its page."""

import base64
import html.parser
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from multistep_cm.config import default_config, flatten
from multistep_cm.reporting.content import (
    Measured,
    Missing,
    Pictures,
    Report,
    Run,
    Strip,
)

HOSTILE = "<script>alert(1)</script>\"'&"


def rows(method: str, *steps: int) -> list[dict[str, Any]]:
    """Like those of `evaluation.json`."""
    return [
        {
            "method": method,
            "steps": number,
            "network_calls": number,
            "num_images": 6000,
            "frechet_distance": 0.0123456789 / number,
            "pixel_frechet_distance": 0.1 / number,
            "class_accuracy": 1 - 0.01 / number,
            "variance_ratio": 0.8 + 0.001 * number,
            "images_per_second": 98765.4321 / number,
            "train_step": 800,
            "seed": 1,
            "guidance_scale": 0.0,
            "x_variance": "analytic",
        }
        for number in steps
    ]


def metrics(count: int) -> list[dict[str, Any]]:
    """Like those of `metrics.jsonl`; one loss is not finite."""
    return [
        {
            "step": 50 * (index + 1),
            "loss": "nan" if index == 3 else 1.0 / (index + 1),
            "loss_t/0.000_to_0.500": 2.0 / (index + 1),
            "loss_t/0.500_to_1.000": 0.5 / (index + 1),
        }
        for index in range(count)
    ]


def strip(label: str, count: int, channels: int = 1) -> Strip:
    """Noise."""
    rng = np.random.default_rng(count)
    shape = (count, 8, 8, channels)
    return Strip(label, rng.integers(1, 255, shape, dtype=np.uint8))


def make_report() -> Report:
    """A teacher and two students; names, paths and keys that would break a page."""
    config = flatten(default_config())
    teacher = Run("teacher", {"method": "denoising"}, config, metrics(1000))
    hostile = Run(
        HOSTILE,
        {"workdir": f"runs/{HOSTILE}"},
        {**config, "method": HOSTILE, "data.directory": HOSTILE},
        metrics(7),
        Pictures(HOSTILE, ["t=1", "t=0"], [strip(HOSTILE, 2), strip("x_hat", 1)]),
    )
    facts = {"floor": 0.009, "classifier_accuracy": 0.99, HOSTILE: HOSTILE}
    return Report(
        title=f"Runs {HOSTILE}",
        made="today",
        runs=[teacher, hostile],
        measured=[
            Measured("teacher", rows("teacher_ddim", 1, 8, 128), facts),
            Measured(HOSTILE, rows("cd", 4), facts),
            Measured("cd1", rows("cd", 1), {"floor": 0.009}),
        ],
        samples=Pictures(
            "The same noise.",
            ["0", "1", HOSTILE],
            [strip("teacher", 3), strip("colour", 3, channels=3)],
        ),
        missing=[Missing(f"no {HOSTILE}", f"command {HOSTILE}")],
        commands=[f"multistep-cm report --workdir={HOSTILE}"],
        versions={"jax": HOSTILE},
    )


class PageReader(html.parser.HTMLParser):
    """Elements with their attributes, cells of tables, and all that is shown."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.data: list[tuple[str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "link", "img", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] == "data":
            self.data.append((self.elements[-1][1]["value"], data))

    def images(self) -> list[np.ndarray]:
        """The pictures that are in the page."""
        start = "data:image/png;base64,"
        sources = [values["src"] for tag, values in self.elements if tag == "img"]
        assert all(source.startswith(start) for source in sources)
        files = [base64.b64decode(source.removeprefix(start)) for source in sources]
        return [np.asarray(Image.open(io.BytesIO(file))) for file in files]


def numbers_of(measured: Sequence[Mapping[str, Any]]) -> list[float]:
    """Every number of rows as `evaluation.json` has them."""
    read = json.loads(json.dumps(list(measured)))
    return [
        value for row in read for value in row.values() if not isinstance(value, str)
    ]
