"""The benchmark of a config's own step on the devices that are here."""

import json
from pathlib import Path

import jax
import pytest

from benchmarks import accelerator
from multistep_cm.errors import UserError
from tests.training.tiny import TINY

OVERRIDES = [f"--config.{key}={value}" for key, value in TINY.items()]


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "numbers.json"
    words = ["--config=configs/digits.py:stage=cd", "--steps=2", "--peak_size=64"]
    words += ["--batches=16", f"--output={output}", *OVERRIDES]
    assert accelerator.main(words) == 0
    record = json.loads(output.read_text())
    (row,) = record["batches"]
    assert row["fits"] and row["batch"] == 16 and row["compiler_bytes"] > 0
    assert row["images_per_second"] * row["seconds_per_step"] == pytest.approx(16)
    rate = row["flops_per_step"] / row["seconds_per_step"]
    peak = record["peak"]["flops"] * record["devices"]
    assert row["share_of_peak"] == pytest.approx(rate / peak)
    assert "| 16 | " in capsys.readouterr().out


def test_what_does_not_fit_ends_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def measure(config: object, *_: object) -> accelerator.Row:
        batch: int = config.training.batch_size  # type: ignore[attr-defined]
        tried.append(batch)
        if batch > 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return {"batch": batch, "fits": True}

    monkeypatch.setattr(accelerator, "measure", measure)
    peak = accelerator.Peak(2, 1.0)
    rows = accelerator.measure_all(
        "configs/digits.py:stage=cd", {}, (8, 16, 32), 1, peak
    )
    assert tried == [8, 16]
    assert rows == [{"batch": 8, "fits": True}, {"batch": 16, "fits": False}]


@pytest.mark.parametrize("words", ["", "8,0", "8;16", "-8"])
def test_wrong_batches_are_one_sentence(words: str) -> None:
    with pytest.raises(UserError, match=r"^--batches is .*, expected whole numbers"):
        accelerator.parse_batches(words)
