"""The converter: a whole file in torch's layout, and a wrong one."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.convert_inception import main
from multistep_cm.evaluation import inception_weights
from multistep_cm.evaluation.inception_weights import (
    expected_shapes,
    load_weights,
    save_weights,
    to_params,
)
from tests.evaluation import seeded

DATA = Path(__file__).parents[1] / "evaluation" / "data"


def test_a_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = seeded.weights(expected_shapes())
    counter = {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(3)}
    first = save_weights(tmp_path / "a.npz", arrays | counter, inception_weights.SHA256)
    output = tmp_path / "new" / "b.npz"
    assert main([f"--weights={first}", f"--output={output}"]) == 0
    assert f"wrote 473 arrays to {output}" in capsys.readouterr().out
    found, expected = load_weights(output), to_params(arrays)
    np.testing.assert_array_equal(found["fc"]["kernel"], expected["fc"]["kernel"])


def test_a_wrong_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "b.npz"
    assert main([f"--weights={DATA / 'zip.pth'}", f"--output={output}"]) == 2
    said = capsys.readouterr().err
    assert "is not the weight file of the FID network" in said
    assert said.count("\n") == 1
    assert not output.exists()
