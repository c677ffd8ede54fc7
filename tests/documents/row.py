"""A row of the table in `runs.py`: how a documented command is run.

A command is found by a pattern and run as it stands in the document, changed only by
what its row says: words in place of others, and words appended, of which the last wins.
"""

import contextlib
import dataclasses
import fnmatch
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from tests.documents.blocks import Command

Way: TypeAlias = Literal["runs", "dry run", "parsed only"]
Around: TypeAlias = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclasses.dataclass(frozen=True)
class Run:
    """A documented command, and how it is run here."""

    pattern: str
    """Of the whole command, with the * of a shell."""
    appended: tuple[str, ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()
    """Files and folders that other rows, or `FOLDERS`, make before."""
    leaves: tuple[str, ...] = ()
    """Files and folders that must be there afterwards."""
    says: str = ""
    """A regular expression that is found in what is printed."""
    way: Way = "runs"
    document: str = "*"
    slow: bool = False
    as_process: bool = False
    """In a shell of its own, for what this process cannot do or become."""
    around: Around = contextlib.nullcontext
    """What is stood in for meanwhile: for a test's name to say."""

    def is_of(self, command: Command) -> bool:
        return fnmatch.fnmatchcase(command.text, self.pattern) and fnmatch.fnmatchcase(
            command.block.document, self.document
        )


def keys(**values: object) -> tuple[str, ...]:
    """`training__num_steps=2` as an override on the command line."""
    return tuple(
        f"--config.{name.replace('__', '.')}={value}" for name, value in values.items()
    )


DIGITS = keys(data__directory="tfds")
NETWORK = keys(
    model__name="mlp",
    model__channels=8,
    model__blocks=1,
    model__attention_resolutions="()",
    model__condition_width=16,
)
STEPS = keys(
    training__num_steps=2,
    training__batch_size=8,
    training__log_every=1,
    checkpoint__every_steps=2,
)
LITTLE = keys(
    sampling__num_steps=2,
    sampling__num_previews=0,
    evaluation__num_images=70,
    evaluation__batch_size=70,
)
SMALL = (*DIGITS, *NETWORK, *STEPS, *LITTLE)
"""Overrides with which a run on the digits takes a second."""

IMAGES = (*NETWORK, *STEPS, *LITTLE, *keys(data__image_size=8, data__num_threads=1))
PHOTOS = (("PATH", "photos"),)
"""A folder that is there from the start."""

MEASURE = ("--num_images=70",)
FID = ("--num_images=72",)
WEIGHTS = "multistep-cm evaluate *inception_weights=*.pth"
DRY = "--dry-run"
READER = (
    *STEPS,
    *LITTLE,
    *keys(model__channels="(8,16)", model__blocks="(1,1)", model__head_dim=8),
    *keys(model__attention_resolutions="(8,)", model__condition_width=16),
    *keys(model__text_width=8, model__text_blocks=1, model__text_head_dim=8),
)
"""Overrides with which a run on captioned scenes takes seconds."""

SCENES = keys(data__directory="scenes")
