"""SIGTERM: the first asks for a stop where nothing is lost, the second ends at once.

Until a program has asked `requested` for the first time, and in programs that never
do, every moment is such a point: the main thread is interrupted (`Stopped`), and when
it cannot be, in a compilation say, the process ends without it. From then on the
program stops where it asks.

Among several processes a signal to one is one to all. A thread of each looks into the
key-value store of JAX's coordinator; there each says how often it has asked, and all
stop at the first question that none has asked yet, or at once when none has asked any.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

BY_SIGTERM = 128 + signal.SIGTERM
"""The exit status of a command that was stopped before its end, as a shell has it."""

TICK = 0.5
"""Seconds between looks at what other processes want."""

GRACE = 2.0
"""Seconds in which the main thread may take notice and tidy up; then without it."""

TIDYING = 10.0
"""Seconds that tidying up may take once the main thread has taken notice."""

AT_ONE_TIME = 1.0
"""Signals within so many seconds are one: launchers send it to a process and again to
its group."""

KEY = "multistep_cm/stop"
LONGEST_ANSWER = 60_000
"""Milliseconds for another process to say how often it has asked; then asked again."""


class Stopped(BaseException):
    """SIGTERM came where nothing is lost; only `Stopping` catches it."""


class Stopping:
    """Turns SIGTERM into the end of the block, or into the answer of `requested`.

    A block that is ended says `sentence` and is left silently: the code behind it goes
    on, to return `status`. Signals can be caught in the main thread only; elsewhere
    nothing is. Once a program where there are several processes.
    """

    def __init__(self, sentence: str, status: int = BY_SIGTERM) -> None:
        """`status` of the process should it have to end without its main thread."""
        self.status = status
        self._sentence = sentence
        self._lock = threading.RLock()
        self._asked = 0  # how often the program has asked
        self._last: int | None = None  # where all stop; 0: at once
        self._first_signal: float | None = None
        self._interrupting = False
        self._noticed = False
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Stopping":
        try:
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        except ValueError:
            self._done.set()
            return self
        self._main = threading.get_ident()
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Written to in C, at once, while the handler waits for the main thread.
        self._woken = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not self._watcher.ident:
            return False
        if self._interrupting:
            self._watcher.join()  # it ends the process together with the others
        stopped = isinstance(error, Stopped)
        signal.signal(signal.SIGTERM, self._previous)
        signal.set_wakeup_fd(self._woken)
        self._done.set()
        os.write(self._pipe[1], b"\0")
        self._watcher.join()
        for end in self._pipe:
            os.close(end)
        if stopped:
            self._say()
        return stopped

    def requested(self) -> bool:
        """Whether to stop here. Every process asks equally often, and all get the same
        answer to the same question."""
        with self._lock:
            if self._last == 0:
                raise Stopped
            self._asked += 1
            return self._last is not None and self._asked >= self._last

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, when Python has its turn there."""
        if self._interrupting:
            if not self._noticed:
                self._noticed = True
                raise Stopped
            return
        now = time.monotonic()
        if self._first_signal is None:
            self._first_signal = now
        elif now - self._first_signal > AT_ONE_TIME:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        if _others() or self._last is not None:
            return
        self._last = self._asked + 1 if self._asked else 0
        if self._last == 0:
            self._noticed = True
            raise Stopped

    def _watch(self) -> None:
        """In a thread of its own: what the main thread may be too busy for."""
        first: float | None = None
        while not self._done.is_set():
            if not self._arrived():
                client = _others()
                if client and self._last is None and _get(client, KEY) is not None:
                    self._agree(client)
                continue
            now = time.monotonic()
            if first is not None and now - first > AT_ONE_TIME:
                self._done.wait(TICK)  # the handler would have ended it
                os._exit(BY_SIGTERM)
            first = now if first is None else first
            client = _others()
            if client:
                client.key_value_set(KEY, "", allow_overwrite=True)
                self._agree(client)
            elif not self._done.wait(AT_ONE_TIME):
                self._arrived()  # what came with the first is no second one
                if not self._done.wait(GRACE - AT_ONE_TIME):
                    self._end_alone()

    def _arrived(self) -> bool:
        """Whether SIGTERM comes, or has come, within a tick."""
        read, _ = self._pipe
        if not select.select([read], [], [], TICK)[0]:
            return False
        return signal.SIGTERM in os.read(read, 4096)

    def _end_alone(self) -> None:
        """End a process whose main thread does nothing, unless it is past asking."""
        with self._lock:
            if self._asked:
                return
            if self._noticed and self._done.wait(TIDYING):
                return
            self._say()
            os._exit(self.status)

    def _agree(self, client: Any) -> None:
        """Find out with all others where to stop; may end the process."""
        import jax

        if self._last is not None:
            return
        process, number = jax.process_index(), jax.process_count()
        # Nobody asks again before all know.
        with self._lock:
            mine = f"{KEY}/asked/{process}"
            client.key_value_set(mine, str(self._asked), allow_overwrite=True)
            asked = [self._ask(client, other) for other in range(number)]
            self._last = max(asked) + 1 if max(asked) else 0
        if self._last == 0:
            self._interrupting = True
            signal.pthread_kill(self._main, signal.SIGTERM)
            time.sleep(GRACE)
            if process == 0:
                time.sleep(TICK)  # the others end at once when it does
                self._say()
            os._exit(self.status)

    def _ask(self, client: Any, process: int) -> int:
        """How often it has asked; whoever has died is noticed by the heartbeat."""
        while True:
            answer = _get(client, f"{KEY}/asked/{process}", LONGEST_ANSWER)
            if answer is not None:
                return int(answer)

    def _say(self) -> None:
        stream = sys.stderr if self.status else sys.stdout
        with contextlib.suppress(OSError):
            print(self._sentence, file=stream, flush=True)


def _others() -> Any:
    """The coordinator's client where there are several processes, else None.

    Loads nothing: a command that has not met others yet is alone.
    """
    distributed = getattr(sys.modules.get("jax"), "distributed", None)
    if distributed is None or not distributed.is_initialized():
        return None
    import jax
    from orbax.checkpoint import multihost

    return multihost.get_jax_distributed_client() if jax.process_count() > 1 else None


def _get(client: Any, key: str, milliseconds: int = 0) -> str | None:
    """The value of a key, waited for; None when it is not there."""
    import jax

    try:
        if milliseconds:
            return str(client.blocking_key_value_get(key, milliseconds))
        return str(client.key_value_try_get(key))
    except jax.errors.JaxRuntimeError:
        return None
