"""What a report holds: plain values, read and drawn elsewhere, rendered by `report`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Strip:
    """A row of pictures.

    Attributes:
      label: what it shows.
      images: uint8 [count, height, width, 1 or 3].
    """

    label: str
    images: np.ndarray


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Strips whose columns belong together.

    Attributes:
      caption: a sentence.
      heads: a text above each column; none for no heads.
      strips: the rows; one may be shorter than the others.
    """

    caption: str
    heads: Sequence[str]
    strips: Sequence[Strip]


@dataclasses.dataclass(frozen=True)
class Measured:
    """The numbers of one run.

    Attributes:
      run: its name.
      rows: of its `evaluation.json`.
      facts: what else that file holds: the floor, versions.
      ema_decay: of the run's main average; None where the file does not say.
    """

    run: str
    rows: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]
    ema_decay: float | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
      name: short, different for each.
      facts: name and text of what to know first.
      config: dotted key to value.
      metrics: rows of `metrics.jsonl`.
      trajectories: from noise to images, step by step; None when not drawn.
    """

    name: str
    facts: Mapping[str, str]
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]] = ()
    trajectories: Pictures | None = None


@dataclasses.dataclass(frozen=True)
class Missing:
    """Something that the report would show: a sentence, and the command that helps."""

    what: str
    command: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """All that a page shows.

    Attributes:
      title: of the page.
      made: when and from what, a sentence.
      runs: in the order of the page.
      measured: numbers of the runs, and of teachers that are not among them.
      samples: every model from the same noise; None when not drawn.
      missing: what could not be shown.
      commands: how all of this is made again.
      versions: of the software that made the page.
    """

    title: str
    made: str
    runs: Sequence[Run]
    measured: Sequence[Measured] = ()
    samples: Pictures | None = None
    missing: Sequence[Missing] = ()
    commands: Sequence[str] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
