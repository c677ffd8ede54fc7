"""What is stood in for while a documented command runs, because it is not here."""

import contextlib
from collections.abc import Iterator

import pytest
import tensorflow_datasets as tfds

from multistep_cm.data.builders import digit_scenes
from multistep_cm.evaluation import fid, inception, inception_weights
from tests.evaluation import tiny


@contextlib.contextmanager
def small_fid_network() -> Iterator[None]:
    """Three linear maps of an 8x8 image for the published network and its weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fid, "NUM_FEATURES", tiny.POOL)
        patch.setattr(fid, "NUM_SPATIAL", tiny.SPATIAL)
        patch.setattr(inception, "taps", tiny.taps)
        patch.setattr(
            inception_weights, "load_weights", lambda path: tiny.make_params(64)
        )
        yield


@contextlib.contextmanager
def few_scenes() -> Iterator[None]:
    """A hundred scenes of digits for 28,000."""
    with pytest.MonkeyPatch.context() as patch:
        few = {"train": 60, "test": 40, "held_out": 40}
        patch.setattr(digit_scenes, "NUM_EXAMPLES", few)
        yield


@contextlib.contextmanager
def mocked_datasets() -> Iterator[None]:
    """Noise for every dataset of TFDS, in its sizes: none can be downloaded here."""
    with tfds.testing.mock_data(num_examples=16):
        yield
