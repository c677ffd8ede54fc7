"""The benchmark of an evaluation: its table, its options, and rounds of small parts."""

from functools import partial
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
import pytest

from benchmarks import evaluation
from multistep_cm.evaluation import inception
from multistep_cm.evaluation.activations import Extractor
from multistep_cm.sharding.mesh import make_mesh
from tests.evaluation import tiny


def record(seconds_by_part: dict[str, tuple[int, list[float]]]) -> dict[str, object]:
    """What a run of three rounds would have kept; a processor takes twice the time."""
    parts = [
        {
            "part": name,
            "images": images,
            "seconds": {"wall": wall, "cpu": [2 * second for second in wall]},
        }
        for name, (images, wall) in seconds_by_part.items()
    ]
    facts = {"rounds": 3, "jax": "1", "device": "cpu", "cores": 2}
    return {"parts": parts, **facts}


def test_rates_are_medians_and_the_sum_names_what_dominates() -> None:
    text = evaluation.table(
        record(
            {
                evaluation.SAMPLING.format(8): (500, [2.0, 1.0, 0.5]),
                evaluation.CLASSIFIER: (1000, [1.0, 1.0, 1.0]),
                evaluation.INCEPTION.format(32): (32, [8.0, 6.4, 4.0]),
                evaluation.MOMENTS: (2000, [0.4, 0.4, 0.4]),
                evaluation.FRECHET: (0, [7.0, 5.0, 6.0]),
            }
        )
    )
    sampling, classifier, inception, _, distance = text.splitlines()[2:7]
    assert sampling.endswith("| 500 | 500 (250 .. 1,000) | 250 | 100.0 s |")
    assert classifier.endswith("| 50.0 s |")
    assert inception.endswith("| 32 | 5.00 (4.00 .. 8.00) | 2.50 | 2.8 h |")
    assert distance.endswith("| once | | | 6.0 s |")
    # 100 + 10,000 + 2 * (10 + 6) seconds, of which Inception takes 98.7 %.
    assert "with FID and sFID, 2.8 h, 98.7% of it Inception features" in text
    assert "instead 2 min, 66.7% of it sampling" in text
    assert {line.count("|") for line in text.splitlines()[:7]} == {6}


def test_seconds_become_minutes_and_hours() -> None:
    found = [evaluation.duration(seconds) for seconds in (0.25, 119.0, 300.0, 9000.0)]
    assert found == ["0.2 s", "119.0 s", "5 min", "2.5 h"]


def test_the_first_round_does_not_count() -> None:
    calls: list[int] = []
    seconds = evaluation.in_rounds(lambda: calls.append(1), rounds=2)
    assert (len(calls), len(seconds["wall"]), len(seconds["cpu"])) == (3, 2, 2)


def test_the_classifier_and_the_distance_are_timed() -> None:
    classify = evaluation.make_classify((8, 4, 4, 1), classes=10)
    features, logits = classify()
    assert (features.shape, logits.shape) == ((8, 64), (8, 10))
    distance = evaluation.make_distance(16)
    assert distance() > 0
    parts = [
        evaluation.Part(name, 8, partial(evaluation.in_rounds, call))
        for name, call in (("classifier", classify), ("distance", distance))
    ]
    for row in evaluation.measure(parts, rounds=2):
        assert len(row["seconds"]["wall"]) == len(row["seconds"]["cpu"]) == 2
        assert min(row["seconds"]["wall"]) > 0


def test_batches_of_one_pass_are_rounds() -> None:
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    extractor = Extractor(tiny.taps, tiny.make_params(4 * 4 * 3), mesh)
    seconds = evaluation.in_batches(extractor, side=4, rounds=3)
    assert len(seconds["wall"]) == len(seconds["cpu"]) == 3
    assert min(seconds["wall"]) > 0


def test_random_weights_are_those_of_the_network() -> None:
    params = evaluation.random_inception()
    pixels = jax.ShapeDtypeStruct((2, 32, 32, 3), np.uint8)
    found = jax.eval_shape(inception.taps, params, pixels)
    assert found["2048"].shape == (2, 2048)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rounds=0"], "--rounds is 0, expected a whole number from 1"),
        (["--rounds=many"], "--rounds is 'many', expected a whole number"),
        (["--output=FOLDER"], "--output is FOLDER, a folder"),
        (["--output=FOLDER/marked.md/e.json"], "cannot be made"),
        (["--document=FOLDER/none.md"], "--document cannot be read"),
        (["--document=FOLDER/plain.md"], "plain.md lacks the marks"),
        (["--round_s=1"], "there is no option --round_s=1"),
    ],
)
def test_bad_options_are_one_sentence(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never() -> NoReturn:
        raise AssertionError("measured before the options were read")

    monkeypatch.setattr(evaluation, "parts", never)
    (tmp_path / "plain.md").touch()
    (tmp_path / "marked.md").write_text("\n".join(evaluation.MARKS))
    folder = str(tmp_path)
    output = f"--output={tmp_path / 'e.json'}"
    assert evaluation.main([output, *(w.replace("FOLDER", folder) for w in words)]) == 1
    error = capsys.readouterr().err
    assert said.replace("FOLDER", folder) in error
    assert len(error.splitlines()) == 1


def test_the_document_and_the_record_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {*evaluation.FID, *evaluation.SMALL}
    seconds = {"wall": [1.0], "cpu": [1.0]}
    monkeypatch.setattr(
        evaluation,
        "parts",
        lambda: [evaluation.Part(name, 1, lambda _: seconds) for name in names],
    )
    document, output = tmp_path / "document.md", tmp_path / "evaluation.json"
    document.write_text("before\n" + "\n".join(evaluation.MARKS) + "\nafter")
    words = [f"--output={output}", f"--document={document}", "--rounds=1"]
    assert evaluation.main(words) == 0
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter")
    assert f"| {evaluation.FRECHET} | 1 |" in text
    assert '"wall"' in output.read_text()
