"""A progress line for long work: steps, values, images/s and time left.

On a terminal it is a bar that redraws itself. Elsewhere (a log file, a notebook, a
job's output) it is a plain line every ten seconds, later every minute, and one at the
end.
"""

import collections
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import rich.console
import rich.progress

# Seconds: between redraws, between plain lines (at first, and after ten minutes), and
# how far back a rate looks.
_REDRAW = 0.25
_PLAIN, _PLAIN_LATER = 10.0, 60.0
_WINDOW = 30.0


class Progress:
    """Counts work. Made by `progress`; between redraws `advance` only adds numbers."""

    def __init__(
        self,
        description: str,
        total: int,
        done: int,
        show: "Show",
        clock: Callable[[], float],
    ) -> None:
        self.description = description
        self.total = total
        self.done = done
        self.images = 0
        self.values: dict[str, Any] = {}
        self._show = show
        self._clock = clock
        self._begin = clock()
        self._next_sample = 0.0
        self._samples: collections.deque[tuple[float, int, int]] = collections.deque()

    def advance(self, steps: int = 1, images: int = 0, **values: Any) -> None:
        """Adds finished work.

        Args:
          steps: steps finished since the last call.
          images: images finished since the last call; 0 shows no images/s.
          **values: as for `show`.
        """
        self.done += steps
        self.images += images
        self.show(values)

    def show(self, values: Mapping[str, Any]) -> None:
        """Newest numbers to show, such as loss; others stay as they are.

        A device array is waited for when the line is redrawn, so pass a value that is
        ready.
        """
        self.values.update(values)
        now = self._clock()
        if now >= self._next_sample:
            self._sample(now)
            self._show(self, False)

    def images_to(self, done: int) -> None:
        """Counts images as steps: so many are finished in all."""
        self.advance(done - self.done, done - self.done)

    def finish(self) -> None:
        """Shows the last state."""
        self._sample(self._clock())
        self._show(self, True)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._begin

    @property
    def steps_per_second(self) -> float | None:
        """Rate over the last half minute; None before it can be told.

        The clock starts with the first call of `advance`: the first step compiles,
        and its time says nothing about the next ones.
        """
        return self._rate(1)

    @property
    def images_per_second(self) -> float | None:
        """The same for images; None where none are counted."""
        return self._rate(2) or None

    @property
    def seconds_left(self) -> float | None:
        """Time left at the present rate; None before it can be told."""
        rate = self.steps_per_second
        return max(0, self.total - self.done) / rate if rate else None

    def _sample(self, now: float) -> None:
        self._next_sample = now + _REDRAW
        self._samples.append((now, self.done, self.images))
        while len(self._samples) > 2 and self._samples[0][0] < now - _WINDOW:
            self._samples.popleft()

    def _rate(self, column: int) -> float | None:
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        seconds = last[0] - first[0]
        return (last[column] - first[column]) / seconds if seconds > 0 else None


Show = Callable[[Progress, bool], None]


@contextlib.contextmanager
def progress(
    description: str,
    total: int,
    *,
    done: int = 0,
    enabled: bool = True,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Shows the progress of the work inside the `with` block.

    One at a time: give an inner one `enabled=False`.

    Args:
      description: what is being done, a word or two.
      total: steps of the whole work.
      done: steps already done before, as in a resumed run.
      enabled: False shows nothing, for processes other than 0.
      stream: where to show it; None is stderr.
      clock: seconds, monotonic; tests pass their own.

    Yields:
      a `Progress`; call its `advance`.
    """
    stream = sys.stderr if stream is None else stream
    console = rich.console.Console(file=stream, highlight=False)
    show: Show = _show_nothing
    with contextlib.ExitStack() as stack:
        if enabled and stream.isatty() and not console.is_dumb_terminal:
            show = stack.enter_context(_bar(console, description, total, done))
        elif enabled:
            show = _plain(stream, clock)
        state = Progress(description, total, done, show, clock)
        stack.callback(state.finish)
        yield state


def _show_nothing(state: Progress, last: bool) -> None:
    pass


def _plain(stream: TextIO, clock: Callable[[], float]) -> Show:
    next_line = clock() + _PLAIN

    def show(state: Progress, last: bool) -> None:
        nonlocal next_line
        if last or clock() >= next_line:
            next_line = clock() + min(max(_PLAIN, state.elapsed / 10), _PLAIN_LATER)
            counts = f"{state.done:,}/{state.total:,}"
            details = _details(state, last)
            print(f"{state.description}  {counts}  {details}", file=stream, flush=True)

    return show


@contextlib.contextmanager
def _bar(
    console: rich.console.Console, description: str, total: int, done: int
) -> Iterator[Show]:
    columns = (
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        rich.progress.TextColumn("{task.fields[details]}", markup=False),
    )
    with rich.progress.Progress(*columns, console=console) as bars:
        task = bars.add_task(description, total=total, completed=done, details="")

        def show(state: Progress, last: bool) -> None:
            bars.update(task, completed=state.done, details=_details(state, last))

        yield show


def _details(state: Progress, last: bool) -> str:
    parts = [f"{name} {_number(value)}" for name, value in state.values.items()]
    if state.images_per_second is not None:
        parts.append(f"{_number(state.images_per_second)} images/s")
    if last:
        parts.append(f"in {_duration(state.elapsed)}")
    elif state.seconds_left is not None:
        parts.append(f"{_duration(state.seconds_left)} left")
    return "  ".join(parts)


def _number(value: Any) -> str:
    number = float(value)
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )
