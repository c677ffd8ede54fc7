"""`evaluation.json`: which rows are replaced, merged and found again."""

import json
from pathlib import Path
from typing import Any

import pytest

from multistep_cm.errors import UserError
from multistep_cm.evaluation.results import (
    Row,
    find_done,
    keep_row,
    read_results,
    row_name,
)
from multistep_cm.generation import SamplingOptions
from tests.training.tiny import tiny_config

CONFIG = tiny_config(data__directory="/somewhere")


def make_row(**values: Any) -> Row:
    way = row_name(CONFIG, SamplingOptions("ddim", values.pop("steps", 4)))
    made = {"seed": 0, "num_images": 100, "train_step": 8, "weights_sha256": "a" * 64}
    return way | made | {"frechet_distance": 0.5, "commit": "b" * 40} | values


def keep(folder: Path, row: Row, **facts: Any) -> dict[str, Any]:
    keep_row(folder, CONFIG, row, facts)
    results: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    assert results == read_results(folder)
    assert [path.name for path in folder.iterdir()] == ["evaluation.json"]
    return results


def test_the_file_says_where_it_comes_from(tmp_path: Path) -> None:
    assert read_results(tmp_path) == {"rows": []}
    found = keep(tmp_path, make_row(), floor=0.1)
    assert found["floor"] == 0.1
    assert found["commit"] == "b" * 40
    assert {"jax", "numpy", "multistep_cm"} <= found.keys()
    assert found["config"]["model"]["channels"] == [8]
    assert found["config"]["data"]["directory"] == ""
    assert found["rows"] == [make_row()]
    # What a later call does not know stays.
    assert keep(tmp_path, make_row(steps=8))["floor"] == 0.1


def test_a_row_replaces_that_of_its_way(tmp_path: Path) -> None:
    for steps in (4, 8):
        keep(tmp_path, make_row(steps=steps))
    guided = make_row(guidance_scale=1.0)
    inside = make_row(guidance_scale=1.0, guidance_interval=[0.2, 0.8])
    for row in (guided, inside):
        keep(tmp_path, row)
    found = keep(tmp_path, make_row(seed=1))["rows"]
    assert found == [make_row(steps=8), guided, inside, make_row(seed=1)]


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"num_images": 99}, {"train_step": 9}, {"weights_sha256": "c" * 64}],
)
def test_only_numbers_of_the_same_images_are_merged(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    keep(tmp_path, make_row())
    later = make_row(fid=3.0)
    del later["frechet_distance"]
    (row,) = keep(tmp_path, later)["rows"]
    assert (row["frechet_distance"], row["fid"]) == (0.5, 3.0)
    (row,) = keep(tmp_path, make_row(**changed))["rows"]
    assert "fid" not in row


def test_a_row_is_done_when_all_that_was_wanted_is_the_same() -> None:
    rows = [make_row(steps=8), make_row()]
    assert find_done(rows, {"steps": 4, "seed": 0}) is rows[1]
    assert find_done(rows, {"steps": 4, "seed": 1}) is None
    # None is a value, absence is none: an older version did not write it.
    assert find_done(rows, {"guidance_interval": None}) is rows[0]
    assert find_done(rows, {"classifier_sha256": None}) is None


def test_names_of_ways() -> None:
    student = tiny_config(method="cd")
    assert row_name(student, SamplingOptions("ddim", 2))["method"] == "cd"
    way = SamplingOptions("addim", 2, 0.5, "measured", (0.25, 0.75))
    assert row_name(CONFIG, way) == {
        "method": "teacher_addim",
        "steps": 2,
        "network_calls": 2,
        "guidance_scale": 0.5,
        "guidance_interval": [0.25, 0.75],
        "x_variance": "measured",
        "eta": CONFIG.sampling.eta,
        "ema_decay": 0.999,
    }
    assert row_name(CONFIG, way, 0.5)["ema_decay"] == 0.5


def test_averages_are_ways_of_their_own_and_old_rows_are_of_the_main_one(
    tmp_path: Path,
) -> None:
    keep(tmp_path, make_row(fid=3.0))
    path = tmp_path / "evaluation.json"
    old = json.loads(path.read_text())
    del old["rows"][0]["ema_decay"]
    path.write_text(json.dumps(old))
    assert read_results(tmp_path)["rows"] == [make_row(fid=3.0)]
    other = make_row(ema_decay=0.99)
    assert keep(tmp_path, other)["rows"] == [make_row(fid=3.0), other]
    # Of the same images: merged, not beside it.
    later = make_row(frechet_distance=0.25)
    assert keep(tmp_path, later)["rows"] == [other, later | {"fid": 3.0}]
    others: list[Any] = [None, [], {}, {"training": 1}]
    for config in others:
        old["config"] = config
        path.write_text(json.dumps(old))
        assert "ema_decay" not in read_results(tmp_path)["rows"][0]


@pytest.mark.parametrize(
    ("text", "said"), [("{", "cannot be read"), ('{"rows": [3]}', 'no list "rows"')]
)
def test_a_file_of_another_form_is_left_alone(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        keep_row(tmp_path, CONFIG, make_row(), {})
    assert str(path) in str(caught.value)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", "8"),
        ("steps", True),
        ("seed", 10**30),
        ("frechet_distance", [0.1]),
        ("method", 3),
        ("guidance_interval", [0.1]),
        ("guidance_interval", [0.1, "x"]),
    ],
)
def test_a_row_with_another_type_is_named(key: str, value: Any, tmp_path: Path) -> None:
    """A table or a chart would end in a traceback over it."""
    rows = [make_row(), {**make_row(), key: value}]
    (tmp_path / "evaluation.json").write_text(json.dumps({"rows": rows}))
    with pytest.raises(UserError, match=f"row 1 has {key} = ") as caught:
        read_results(tmp_path)
    assert str(tmp_path / "evaluation.json") in str(caught.value)


def test_a_floor_that_is_no_number_is_named(tmp_path: Path) -> None:
    text = '{"floor": "low", "rows": [], "classifier_accuracy": NaN}'
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(UserError, match="it has floor = 'low', expected a number"):
        read_results(tmp_path)
