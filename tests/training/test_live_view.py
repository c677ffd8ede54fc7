"""What can be watched while a run trains: events, lines of metrics, progress."""

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from multistep_cm.training import speed
from multistep_cm.training.loop import train
from tests.training.tiny import one_device, tiny_config


def read_events(folder: Path) -> Iterator[event_pb2.Event]:
    """All events, in the order of their files: length, its sum, event, its sum."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = event_pb2.Event()
            event.ParseFromString(data[place + 12 : place + 12 + length])
            yield event
            place += 12 + length + 4


def test_a_run_can_be_watched(
    tmp_path: Path,
    digits_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(speed, "device_peak", lambda kind: 1e15)
    config = tiny_config(
        digits_directory, sampling__num_previews=4, sampling__every_steps=4
    )
    with one_device():
        assert train(config, tmp_path)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    rated = [row for row in rows if "images_per_second" in row]
    assert rated
    for row in rated:
        assert 0 < row["mfu"] < 1

    scalars: dict[str, list[int]] = {}
    grids: dict[str, dict[int, np.ndarray]] = {}
    for event in read_events(tmp_path):
        for value in event.summary.value:
            if value.HasField("image"):
                picture = Image.open(io.BytesIO(value.image.encoded_image_string))
                grids.setdefault(value.tag, {})[event.step] = np.asarray(picture)
            else:
                scalars.setdefault(value.tag, []).append(event.step)
    assert scalars["loss"] == [2, 4, 6, 8]
    assert {"grad_norm", "learning_rate", "images_per_second", "mfu"} <= set(scalars)
    assert any(tag.startswith("loss_t/") for tag in scalars)
    assert set(grids) == {"samples/ema", "samples/raw"}
    averaged, raw = grids["samples/ema"], grids["samples/raw"]
    assert list(averaged) == list(raw) == [4, 8]
    assert averaged[8].shape == raw[8].shape
    assert (averaged[8] != raw[8]).any()
    with Image.open(tmp_path / "samples" / "8.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), averaged[8])

    shown = capsys.readouterr().err
    assert "\r" not in shown
    last = shown.splitlines()[-1]
    for word in ("denoising  8/8", "checkpoint 8", "loss ", "mfu ", "images/s"):
        assert word in last
