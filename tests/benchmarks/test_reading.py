"""The measurement of listing, decoding and writing, on few files."""

import pytest
from PIL import Image

from benchmarks import reading
from multistep_cm.data.transforms import decode


def test_it_prints_a_line_for_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reading, "CLASSES", 5)
    reading.main(["--num_files=20", "--num_images=4"])
    said = capsys.readouterr().out
    assert "listing 20 files in 5 folders of a local disk: 0." in said
    for size in (64, 128):
        assert f"to {size} pixels: " in said
    assert "the 1,331,167 of imagenet2012 (144 GiB) take " in said


def test_its_pictures_are_as_large_as_imagenets() -> None:
    files = reading.pictures(4)
    mean = sum(map(len, files)) / len(files)
    expected = reading.ARCHIVE_BYTES / reading.IMAGENET_IMAGES
    assert abs(mean / expected - 1) < 0.1
    assert isinstance(decode(files[0]), Image.Image)
    assert len(set(files)) == 4
