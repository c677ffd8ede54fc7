"""Embeddings made offline: parts that resume, and a dataset that a model can read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from safetensors.numpy import save

from multistep_cm.config import default_config
from multistep_cm.data import embed, embedding
from multistep_cm.data.sources import check_data, open_source
from multistep_cm.errors import UserError
from tests.data.conftest import png, write_dataset

LENGTH, WIDTH = 4, 3
TEXTS = [f"a {'very ' * (i % 3)}small {i}" for i in range(11)]


class Words:
    """Each word's letters and place as its embedding; counts what it was given."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        self.seen += captions
        embeddings = np.zeros((len(captions), LENGTH, WIDTH), np.float32)
        mask = np.zeros((len(captions), LENGTH), bool)
        for row, caption in enumerate(captions):
            for place, word in enumerate(caption.split()[:LENGTH]):
                embeddings[row, place] = [len(word), ord(word[-1]), place]
                mask[row, place] = True
        return embeddings, mask


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PART", 4)


def test_a_stopped_run_goes_on_with_the_part_that_is_missing(tmp_path: Path) -> None:
    encode, done = Words(), list[int]()
    paths = embedding.embed_split(TEXTS, tmp_path, encode, 3, done.append)
    assert len(paths) == 3
    assert encode.seen == TEXTS
    assert done == sorted(done) and done[-1] == len(TEXTS)
    want, mask = Words()(TEXTS)
    paths[1].unlink()
    paths[2].write_bytes(paths[2].read_bytes()[:-30])
    again = Words()
    assert embedding.embed_split(TEXTS, tmp_path, again, 3) == paths
    assert again.seen == TEXTS[4:]
    got = list(embedding.read_parts(paths))
    np.testing.assert_array_equal(np.stack([row[0] for row in got]), want)
    np.testing.assert_array_equal(np.stack([row[1] for row in got]), mask)


def test_what_float16_does_not_hold(tmp_path: Path) -> None:
    def encode(captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.full((len(captions), 1, 1), 1e6), np.ones((len(captions), 1), bool)

    with pytest.raises(UserError, match="too large for float16"):
        embedding.embed_split(TEXTS, tmp_path, encode, 3)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data_dir with `tiny`: captioned images in two splits."""
    folder = tmp_path_factory.mktemp("embedding")
    features = {
        "photo": tfds.features.Image(shape=(4, 4, 1)),
        "said": tfds.features.Text(),
    }
    examples = [
        {"photo": png(np.full((4, 4), i, np.uint8)), "said": text}
        for i, text in enumerate(TEXTS)
    ]
    write_dataset(folder, features, {"train": examples[:9], "test": examples[9:]})
    return str(folder)


def words(source: str, output: Path, **changes: str) -> list[str]:
    options = {
        "data": "tiny",
        "directory": source,
        "caption_key": "said",
        "image_key": "photo",
        "encoder": "none",
        "length": str(LENGTH),
        "batch_size": "2",
        "output": str(output),
        **changes,
    }
    return [f"--{key}={value}" for key, value in options.items()]


def test_a_dataset_with_embeddings_is_read_by_a_model(
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(embed, "transformers_encoder", lambda name, length: Words())
    assert embed.main(words(source, tmp_path)) == 0
    said = capsys.readouterr().out
    data = default_config().data
    for word in said.split():
        if word.startswith("--config.data."):
            key, _, value = word.removeprefix("--config.data.").partition("=")
            data[key] = type(data[key])(value)
    data.update({"image_size": 4, "label_key": "", "num_classes": 0})
    check_data(data)
    assert (data.text_length, data.text_width) == (LENGTH, WIDTH)
    batch = open_source(data, "train").read(np.arange(9))
    want, mask = Words()(TEXTS[:9])
    np.testing.assert_array_equal(batch["text"], want)
    np.testing.assert_array_equal(batch["text_mask"], mask)
    np.testing.assert_array_equal(batch["image"].max((1, 2, 3)), np.arange(9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption_key": "photo"}, "expected a Text of dataset 'tiny'"),
        ({"image_key": "picture"}, "expected a Image of dataset 'tiny'"),
        ({"length": "0"}, "--length is 0, expected above 0"),
        ({"name": "A b"}, "--name is 'A b', expected small letters"),
        ({"data": "tinny"}, "no dataset of TFDS"),
    ],
)
def test_bad_input_is_said_in_a_sentence(
    source: str,
    tmp_path: Path,
    changes: dict[str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert embed.main(words(source, tmp_path, **changes)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_parts_of_two_encoders(tmp_path: Path) -> None:
    paths = embedding.embed_split(TEXTS[:4], tmp_path, Words(), 3)
    wide = tmp_path / "000001.safetensors"
    arrays = {"embedding": np.zeros((1, 2, 9)), "mask": np.ones((1, 2), bool)}
    wide.write_bytes(save(arrays))
    with pytest.raises(UserError, match=r"delete .* and make them again"):
        list(embedding.read_parts([*paths, wide]))


@pytest.mark.parametrize("kind", ["t5", "clip"])
def test_encoders_of_transformers(tmp_path: Path, kind: str) -> None:
    """With weights at random, made here: nothing is downloaded."""
    transformers: Any = pytest.importorskip("transformers")
    tokenizers: Any = pytest.importorskip("tokenizers")
    pytest.importorskip("torch")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "a", "small"])}
    level = tokenizers.models.WordLevel(vocabulary, unk_token="</s>")
    tokenizer = tokenizers.Tokenizer(level)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(tmp_path)
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=4, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
        )
        model = transformers.T5EncoderModel(config)
    else:
        config = transformers.CLIPTextConfig(
            vocab_size=4,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
        )
        model = transformers.CLIPTextModel(config)
    model.save_pretrained(tmp_path)
    encode = embedding.transformers_encoder(str(tmp_path), 5)
    embeddings, mask = encode(["a small", "a", "a small a small a small"])
    assert embeddings.shape == (3, 5, 8)
    np.testing.assert_array_equal(mask.sum(1), [2, 1, 5])
    alone, _ = encode(["a"])
    np.testing.assert_allclose(embeddings[1, :1], alone[0, :1], atol=1e-5)


def test_an_encoder_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot open|pip install"):
        embedding.transformers_encoder(str(tmp_path / "none"), 5)
