"""A dataset on disk is data: nothing that its files name is imported."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from multistep_cm.data.builders.catalog import open_builder
from multistep_cm.data.builders.described import class_names
from multistep_cm.errors import UserError
from tests.data.conftest import write_dataset

MODULE = "code_that_comes_with_data"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """The folder of a prepared dataset `tiny`, in `tmp_path` as data_dir."""
    features = {
        "label": tfds.features.ClassLabel(num_classes=2),
        "list": tfds.features.Sequence({"x": tfds.features.Scalar(np.int64)}),
    }
    examples = [{"label": 1, "list": {"x": [1, 2]}}]
    return write_dataset(tmp_path, features, {"train": examples})


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that can be imported and would leave a file behind."""
    (tmp_path / "path").mkdir()
    mark = tmp_path / "it_ran"
    code = f"open({str(mark)!r}, 'w').close()\n"
    (tmp_path / "path" / f"{MODULE}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "path")
    yield mark
    assert MODULE not in sys.modules
    assert not mark.exists()


def test_a_dataset_of_tfds_features_opens(dataset: Path, tmp_path: Path) -> None:
    """So do those that name a class of TFDS inside of a text, as Sequence does."""
    builder = open_builder("tiny", str(tmp_path))
    assert set(builder.info.features) == {"label", "list"}
    names = [*class_names(json.loads((dataset / "features.json").read_text()))]
    assert len(names) >= 4


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """In the place of the label, as JSON that is a text in JSON."""
    inner = json.dumps({"label": {"type": f"{MODULE}.Feature", "content": {}}})
    return {**values, "featuresDict": None, "jsonFeature": {"json": inner}}


def replaced(values: dict[str, Any]) -> dict[str, Any]:
    """In the place of the label."""
    text = json.dumps(values)
    old = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
    assert old in text
    changed: dict[str, Any] = json.loads(text.replace(old, f"{MODULE}.Feature"))
    return changed


@pytest.mark.parametrize(
    "change",
    [
        replaced,
        nested,
        lambda values: {**values, "pythonClassName": f"{MODULE}.Feature"},
        lambda values: {"python_class_name": f"{MODULE}.Feature"},
        lambda values: {"type": f"{MODULE}.Feature", "content": {}},
        lambda values: {"type": f"tensorflow_datasets.core.features.{MODULE}/../x.y"},
        lambda values: {"type": "os.path.Feature", "content": {}},
    ],
)
def test_a_module_is_not_imported(
    change: Any, dataset: Path, tmp_path: Path, evil: Path
) -> None:
    path = dataset / "features.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match="names the class") as caught:
        open_builder("tiny", str(tmp_path))
    assert str(path) in str(caught.value)


def test_nor_one_that_the_other_file_names(
    dataset: Path, tmp_path: Path, evil: Path
) -> None:
    """`dataset_info.json` may describe the features too."""
    path = dataset / "dataset_info.json"
    values = json.loads(path.read_text())
    values["features"] = replaced(json.loads((dataset / "features.json").read_text()))
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="names the class") as caught:
        open_builder("tiny", str(tmp_path))
    assert str(path) in str(caught.value)


def test_tfds_alone_would_import_it(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this is about; when TFDS does not do so any more, the check can go."""
    imported: list[str] = []
    from tensorflow_datasets.core.features import feature

    def note(name: str) -> None:
        imported.append(name)
        raise ImportError(name)

    monkeypatch.setattr(feature.importlib, "import_module", note)
    path = dataset / "features.json"
    path.write_text(json.dumps(replaced(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match="Could not import"):
        tfds.builder("tiny", data_dir=str(tmp_path))
    assert imported == [MODULE]


@pytest.mark.parametrize(
    "name", ["tiny/x=1", "tiny/data_dir=/tmp", "a,b", "tiny\0", "tiny/try_gcs=True"]
)
def test_arguments_in_a_name_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config key data.name is .* no arguments"):
        open_builder(name, str(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "\0", '{"a": "' + "x" * 2**25]
)
@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
def test_a_damaged_description(
    file: str, text: str, dataset: Path, tmp_path: Path
) -> None:
    (dataset / file).write_text(text)
    with pytest.raises(UserError, match=f"{file} is damaged"):
        open_builder("tiny", str(tmp_path))
