"""Metric files: valid JSON always, repaired after a crash, cut on resume."""

import json
import struct
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from multistep_cm.errors import UserError
from multistep_cm.reporting.events import TensorBoardWriter
from multistep_cm.reporting.metrics import FanOut, JsonlWriter, open_writer, read_jsonl

FULL = Path("/dev/full")


def write_steps(path: Path, steps: range, resume_step: int | None = None) -> None:
    writer = JsonlWriter(path, resume_step)
    for step in steps:
        writer.scalars(step, {"loss": step / 10})
    writer.close()


def steps_in(path: Path) -> list[int]:
    return [row["step"] for row in read_jsonl(path)]


def events_in(folder: Path) -> list[Any]:
    """All events of a folder; a record is length, checksum, data, checksum."""
    events = []
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def test_each_call_is_one_line_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    writer = JsonlWriter(path)
    writer.scalars(1, {"loss": 0.5, "count": 3})
    # Read before close: the line must be there after a kill.
    assert path.read_text() == '{"step": 1, "loss": 0.5, "count": 3}\n'
    writer.scalars(2, {"loss": jnp.float32(0.25), "rate": np.float64(2.0)})
    writer.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[1] == {"step": 2, "loss": 0.25, "rate": 2.0}


def test_values_that_json_lacks_come_back_through_float(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    writer.scalars(1, {"a": float("nan"), "b": np.float32("inf"), "c": -jnp.inf})
    writer.close()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row == {"step": 1, "a": "nan", "b": "inf", "c": "-inf"}
    assert float(row["c"]) == -np.inf


def test_text_is_no_scalar(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    with pytest.raises(TypeError, match="must be a number"):
        writer.scalars(1, {"note": "hello"})
    writer.close()


def test_resume_drops_later_steps_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 8))
    write_steps(path, range(5, 7), resume_step=4)
    assert steps_in(path) == [1, 2, 3, 4, 5, 6]
    write_steps(path, range(7, 8))
    assert steps_in(path) == [1, 2, 3, 4, 5, 6, 7]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', '{"step": 4}{"st', "\0\0\0"])
def test_a_torn_last_line_is_repaired(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 4))
    path.write_text(path.read_text() + torn)
    assert steps_in(path) == [1, 2, 3]
    write_steps(path, range(4, 6))
    assert steps_in(path) == [1, 2, 3, 4, 5]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_whole_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 4))
    path.write_text(path.read_text().rstrip("\n"))
    write_steps(path, range(4, 5))
    assert steps_in(path) == [1, 2, 3, 4]


def test_both_files_get_everything(tmp_path: Path) -> None:
    picture = Image.fromarray(np.full((4, 6, 3), 9, np.uint8))
    writer = open_writer(tmp_path)
    writer.scalars(3, {"loss": 0.5})
    writer.images(3, {"grid": picture, "gray": np.zeros((4, 6, 1), np.uint8)})
    writer.close()
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 3, "loss": 0.5}]
    events = [e for e in events_in(tmp_path) if e.HasField("summary")]
    values = {v.tag: (e.step, v) for e in events for v in e.summary.value}
    assert set(values) == {"loss", "grid", "gray"}
    assert {step for step, _ in values.values()} == {3}
    assert values["loss"][1].simple_value == 0.5
    image = values["grid"][1].image
    assert (image.height, image.width) == (4, 6)


def test_tensorboard_is_told_what_to_hide(tmp_path: Path) -> None:
    writer = open_writer(tmp_path, resume_step=7)
    writer.close()
    starts = [e.step for e in events_in(tmp_path) if e.HasField("session_log")]
    assert starts == [8]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "run", enabled=False)
    writer.scalars(1, {"loss": 1.0})
    writer.images(1, {})
    writer.close()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="name a writable workdir"):
        open_writer(blocked / "run")


def test_a_full_disk_is_one_sentence_and_nothing_waits(tmp_path: Path) -> None:
    events = TensorBoardWriter(tmp_path)
    events.close()
    events._file = FULL.open("ab", buffering=0)
    lines = JsonlWriter(tmp_path / "metrics.jsonl")
    writer = FanOut([events, lines], str(tmp_path))
    # More than any queue held that once stood here.
    for step in range(20):
        with pytest.raises(UserError, match=f"{tmp_path} .No space left on device"):
            writer.scalars(step, {"loss": 1.0})
    with pytest.raises(UserError, match="No space left"):
        writer.images(20, {"grid": np.zeros((4, 4, 3), np.uint8)})
    writer.close()
    assert events._file.closed
    assert lines._file.closed


def test_all_writers_are_closed_though_one_cannot(tmp_path: Path) -> None:
    lines = JsonlWriter(tmp_path / "metrics.jsonl")
    lines._file.close()
    lines._file = FULL.open("a", encoding="utf-8")
    lines._file.write("pending")
    events = TensorBoardWriter(tmp_path)
    with pytest.raises(UserError, match="No space left"):
        FanOut([events, lines], "there").close()
    assert events._file.closed


def test_events_read_as_tensorboard_reads_them(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, resume_step=3)
    writer.scalars(4, {"loss": 0.5})
    writer.close()
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    first = events_in(tmp_path)[0]
    assert first.file_version == "brain.Event:2"
    assert first.wall_time > 0
    place = 0
    while place < len(data):
        (size,) = struct.unpack_from("<Q", data, place)
        body = data[place + 12 : place + 12 + size]
        sums = struct.unpack_from("<I", data, place + 8)
        sums += struct.unpack_from("<I", data, place + 12 + size)
        assert sums == (masked(data[place : place + 8]), masked(body))
        place += 16 + size


def masked(data: bytes) -> int:
    """CRC32C bit by bit, turned and shifted as record files do."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_what_is_no_file_of_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.mkdir()
    with pytest.raises(ValueError, match="it is a folder"):
        read_jsonl(path)
    with pytest.raises(UserError, match="cannot write metrics"):
        open_writer(tmp_path)
    path.rmdir()
    path.write_text(f'{{"step": {10**30}}}\n{{"step": -1}}\n{{"step": 3}}\n')
    assert read_jsonl(path) == [{"step": 3}]
