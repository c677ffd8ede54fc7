"""A page in headless Chromium, by its debugging protocol over a pipe; no packages.

The protocol is JSON ended by a zero byte, read by Chromium from file descriptor 3 and
written to 4: https://chromedevtools.github.io/devtools-protocol.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

SECONDS = 60.0
"""How long anything may take, on a busy machine."""


def find_chromium() -> str | None:
    """The program, wherever it is installed under one of its names."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab; `events` holds all that Chromium has reported, in order."""

    def __init__(self, write_end: int, read_end: int) -> None:
        self.events: list[dict[str, Any]] = []
        self._write_end, self._read_end = write_end, read_end
        self._buffer = b""
        self._number = 0
        self._session = ""
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        arguments = {"targetId": target, "flatten": True}
        session: str = self.call("Target.attachToTarget", arguments)["sessionId"]
        self._session = session
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(
        self, method: str, arguments: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """What Chromium answers; events on the way are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments or {}}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def open(self, path: Path) -> None:
        """Load a file and wait until it is complete, pictures included."""
        begin = len(self.events)
        self.call("Page.navigate", {"url": path.resolve().as_uri()})
        while not self._has_loaded(begin):
            self.events.append(self._receive())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        arguments = {
            "expression": expression,
            "returnByValue": True,
            "awaitPromise": True,
        }
        answer = self.call("Runtime.evaluate", arguments)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def set_size(self, width: int, height: int, mobile: bool = False) -> None:
        """As on a screen of that many pixels; a phone's has two for each."""
        arguments = {
            "width": width,
            "height": height,
            "deviceScaleFactor": 2 if mobile else 1,
            "mobile": mobile,
        }
        self.call("Emulation.setDeviceMetricsOverride", arguments)

    def set_dark(self, dark: bool) -> None:
        """What the page is told that its reader prefers."""
        feature = {
            "name": "prefers-color-scheme",
            "value": "dark" if dark else "light",
        }
        self.call("Emulation.setEmulatedMedia", {"features": [feature]})

    def complaints(self) -> list[dict[str, Any]]:
        """Errors and warnings of the console, and exceptions."""
        kinds = {
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Log.entryAdded",
        }
        return [event for event in self.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        """Addresses of all that was loaded, but for what is in the page itself."""
        urls = [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith("data:")]

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        arguments = {"format": "png", "captureBeyondViewport": True}
        data = self.call("Page.captureScreenshot", arguments)["data"]
        path.write_bytes(base64.b64decode(data))

    def _has_loaded(self, begin: int) -> bool:
        """Whether the event is among those from this one on."""
        names = (event.get("method") for event in self.events[begin:])
        return "Page.loadEventFired" in names

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._read_end], [], [], left)
            assert ready, f"Chromium said nothing for {SECONDS:.0f} seconds"
            data = os.read(self._read_end, 1 << 20)
            assert data, "Chromium has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@contextlib.contextmanager
def open_page(program: str, profile: Path) -> Iterator[Page]:
    """A tab of a fresh Chromium, which ends with the block; `profile` is its folder."""
    from_us, write_end = os.pipe()
    read_end, to_us = os.pipe()
    words = [
        program,
        "--headless=new",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
        "--no-sandbox",  # as root there is none
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--hide-scrollbars",
        "about:blank",
    ]
    # The shell puts the pipes where Chromium expects them.
    script = f'exec "$@" 3<&{from_us} 4>&{to_us}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *words],
        pass_fds=(from_us, to_us),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(to_us)
    try:
        yield Page(write_end, read_end)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(write_end)
        os.close(read_end)
