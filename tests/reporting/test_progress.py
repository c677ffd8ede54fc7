"""Progress lines, with a clock that the tests turn."""

import io
import time

import pytest

from multistep_cm.reporting.progress import progress


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_every_ten_seconds_and_at_the_end() -> None:
    clock, stream = Clock(), io.StringIO()
    with progress("train", 1000, stream=stream, clock=clock) as bar:
        for _ in range(250):
            clock.now += 0.1
            bar.advance(4, 400, loss=0.12345)
    lines = stream.getvalue().splitlines()
    # 25 seconds: two lines and the last one.
    assert len(lines) == 3
    # 4 steps and 400 images in each tenth of a second.
    assert lines[0].startswith("train  4")
    assert lines[0].endswith("loss 0.1235  4,000 images/s  0:15 left")
    assert lines[-1] == "train  1,000/1,000  loss 0.1235  4,000 images/s  in 0:25"


def test_the_rate_looks_at_recent_work_only() -> None:
    clock = Clock()
    with progress("x", 10_000, enabled=False, clock=clock) as bar:
        assert bar.steps_per_second is None
        clock.now += 500  # the first step compiles
        bar.advance(1, 10)
        assert bar.images_per_second is None
        for _ in range(100):
            clock.now += 1
            bar.advance(1, 10)
        assert bar.images_per_second == pytest.approx(10)
        for _ in range(100):
            clock.now += 1
            bar.advance(5, 50)
        assert bar.images_per_second == pytest.approx(50)
        assert bar.seconds_left == pytest.approx((10_000 - bar.done) / 5)


def test_a_resumed_run_counts_on_but_its_rate_does_not() -> None:
    clock, stream = Clock(), io.StringIO()
    with progress("train", 600, done=500, stream=stream, clock=clock) as bar:
        for _ in range(5):
            clock.now += 1
            bar.advance()
        assert bar.steps_per_second == pytest.approx(1)
        assert bar.images_per_second is None
    assert stream.getvalue() == "train  505/600  in 0:05\n"


def test_silence_when_told() -> None:
    stream = io.StringIO()
    with progress("x", 10, enabled=False, stream=stream) as bar:
        bar.advance(10)
    assert bar.done == 10
    assert stream.getvalue() == ""


def test_an_error_passes_and_shows_how_far_it_came() -> None:
    stream = io.StringIO()
    with (
        pytest.raises(RuntimeError, match="boom"),
        progress("x", 10, stream=stream) as bar,
    ):
        bar.advance(3)
        raise RuntimeError("boom")
    assert stream.getvalue().startswith("x  3/10")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with progress("sample [4/8]", 1200, stream=stream) as bar:
        bar.advance(1200, 5, loss=2345.6)
    shown = stream.getvalue()
    assert "sample [4/8]" in shown
    assert "━" in shown
    assert "1,200/1,200" in shown
    assert "loss 2,346" in shown


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with progress("x", 2, stream=stream) as bar:
        bar.advance(2)
    assert stream.getvalue() == "x  2/2  in 0:00\n"


def test_advancing_is_cheap() -> None:
    with progress("x", 100_000, stream=io.StringIO()) as bar:
        start = time.process_time()
        for _ in range(20_000):
            bar.advance(1, 64, loss=1.0)
        seconds = time.process_time() - start
    assert seconds < 20_000 * 50e-6


def test_what_is_shown_stays_until_it_is_new() -> None:
    clock, stream = Clock(), io.StringIO()
    with progress("train", 3000, stream=stream, clock=clock) as bar:
        bar.show({"checkpoint": 0})
        bar.show({"loss": 0.5, "mfu": 0.41})
        bar.show({"checkpoint": 2000})
        clock.now += 11
        bar.advance(1)
    last = stream.getvalue().splitlines()[-1]
    assert last == "train  1/3,000  checkpoint 2,000  loss 0.5  mfu 0.41  in 0:11"


def test_a_long_log_is_quiet() -> None:
    clock, stream = Clock(), io.StringIO()
    hour = 3600
    with progress("train", 10 * hour, stream=stream, clock=clock) as bar:
        for _ in range(5 * hour):
            clock.now += 1
            bar.advance()
    # A line a minute, some more in the first ten.
    assert 5 * 60 < len(stream.getvalue().splitlines()) < 5 * 60 + 30


def test_a_line_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log has no control characters of a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with progress("x", 2, stream=stream) as bar:
        bar.advance(2, 5, loss=1.0)
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()
