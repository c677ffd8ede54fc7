"""A tiny model of captions through train, sample and export; what it refuses."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from jax import export
from PIL import Image

from multistep_cm.commands import prompts
from multistep_cm.commands.main import main
from multistep_cm.config import default_config
from multistep_cm.data.captions import encode_bytes
from multistep_cm.errors import UserError
from multistep_cm.evaluation.npz import load_samples
from tests.data.conftest import png, write_dataset
from tests.training.tiny import flags, tiny_config

TEXTS = ["a two above a one", "a three", "a four", "five"] * 36


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: first)
        yield


@pytest.fixture(scope="module")
def run(one_device: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a teacher that has read two batches of captions."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    features = {
        "image": tfds.features.Image(shape=(8, 8, 1)),
        "caption": tfds.features.Text(),
    }
    examples = [
        {"image": png(rng.integers(256, size=(8, 8), dtype=np.uint8)), "caption": text}
        for text in TEXTS
    ]
    write_dataset(folder, features, {"train": examples, "test": examples[:4]})
    config = tiny_config(
        folder,
        data__name="tiny",
        data__label_key="",
        data__num_classes=0,
        data__text="bytes",
        data__text_length=16,
        model__attention_resolutions=(8,),
        model__text_width=8,
        model__text_blocks=1,
        model__text_head_dim=8,
        training__num_steps=2,
        checkpoint__every_steps=2,
    )
    (folder / "some.py").write_text(
        "from multistep_cm.config import default_config\n\n\n"
        "def get_config(_):\n    return default_config()\n"
    )
    words = ["train", f"--config={folder}/some.py", f"--workdir={folder}/run"]
    assert main([*words, *flags(config)]) == 0
    return folder / "run"


def test_prompts_become_images_with_captions(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a four\n\nübergroß\n", "utf-8")
    words = ["sample", f"--workdir={run}", "--guidance_scale=1", "--prompt=a three"]
    words += ["--prompt=a two above a one and more", f"--prompts_file={file}"]
    assert main([*words, f"--output={tmp_path}/a.png"]) == 0
    said = capsys.readouterr().out
    assert "1 caption was longer than 16 bytes and cut (--prompt)" in said
    assert "wrote 4 images" in said
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.height > 128 + 2 * 16 + 10  # text below the images

    # The same noise, another caption; then prompts in turn.
    drawn = {}
    for name, more in (("one", []), ("two", ["--prompt=five"])):
        words = ["sample", f"--workdir={run}", "--num_images=4", "--prompt=a three"]
        assert main([*words, *more, f"--output={tmp_path}/{name}.npz"]) == 0
        drawn[name], labels = load_samples(tmp_path / f"{name}.npz")
        assert labels is None
    differs = (drawn["one"].astype(int) != drawn["two"]).any((1, 2, 3))
    assert differs.shape == (4,)
    assert not differs[::2].any()


def test_an_exported_sampler_takes_bytes(run: Path, tmp_path: Path) -> None:
    words = ["export", f"--workdir={run}", f"--output={tmp_path}/out"]
    assert main([*words, "--platforms=cpu", "--num_steps=2"]) == 0
    description = json.loads((tmp_path / "out" / "export.json").read_text())
    assert list(description["inputs"]) == ["seed", "first", "text", "text_mask"]
    assert description["inputs"]["text"].startswith("uint8 [b, 16], UTF-8 bytes")
    program = bytearray((tmp_path / "out" / "sampler.jaxexport").read_bytes())
    arrays, _ = encode_bytes(["a three", "five", ""], 16)
    numbers = np.uint32(3), np.uint32(0)
    called = export.deserialize(program).call
    images = called(*numbers, arrays["text"], arrays["text_mask"])
    assert (images.shape, images.dtype) == ((3, 8, 8, 1), np.uint8)


def test_without_prompts_captions_of_the_evaluation_split(
    run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a.png"
    words = ["sample", f"--workdir={run}", "--num_images=4", f"--output={output}"]
    assert main(words) == 0
    assert output.exists()


@pytest.mark.slow
def test_it_is_measured_on_captions_of_the_evaluation_split(run: Path) -> None:
    words = ["evaluate", f"--workdir={run}", "--num_images=70", "--num_steps=1"]
    assert main(words) == 0
    (row,) = json.loads((run / "evaluation.json").read_text())["rows"]
    assert row["pixel_frechet_distance"] > 0
    assert "class_accuracy" not in row or row["class_accuracy"] is None


def test_classes_are_not_asked_of_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", f"--workdir={run}", "--labels=3"]) != 0
    assert "the model has no classes" in capsys.readouterr().err


def test_prompts_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read as UTF-8 text"):
        prompts.read_prompts([], tmp_path / "none.txt")
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n\n")
    with pytest.raises(UserError, match="holds no prompt: expected one a line"):
        prompts.read_prompts([], empty)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read as UTF-8 text"):
        prompts.read_prompts([], tmp_path / "bytes.txt")


def test_models_that_read_no_prompts() -> None:
    data = default_config().data
    with pytest.raises(UserError, match="trained without captions"):
        prompts.encode_prompts(["a"], 1, data)
    data.text = "precomputed"
    with pytest.raises(UserError, match="precomputed embeddings and no text"):
        prompts.encode_prompts(["a"], 1, data)


def test_prompts_in_turn_and_back() -> None:
    data = default_config().data
    data.text, data.text_length = "bytes", 8
    wanted, warning = prompts.encode_prompts(["für", "123456789"], 3, data)
    assert prompts.decode_prompts(wanted) == ["für", "12345678", "für"]
    assert warning.startswith("warning: 1 caption was longer than 8 bytes")
    assert prompts.encode_prompts(["für"], 1, data)[1] == ""
