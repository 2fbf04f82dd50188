"""Headless Chromium driven by its DevTools protocol over a pipe: no further package is needed."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.pages.browser import CHROMIUM


class Tab:
    """One page. `run` evaluates JavaScript and waits for promises."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.problems: list[str] = []
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")

    def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def open(self, url: str, *, width: int, height: int = 800) -> None:
        """Load a page at a width in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Page.navigate", url=url)
        self.run("new Promise(done => document.readyState === 'complete' ? done() : onload = done)")

    def run(self, script: str) -> Any:
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true, for at most 20 seconds."""
        assert self.run(
            "(async () => { for (let n = 0; n < 400; n++) {"
            f" if ({condition}) return true; await new Promise(r => setTimeout(r, 50)); }}"
            " return false; })()"
        ), condition

    def _message(self) -> Any:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: Any) -> None:
        """Keep what the console says of errors: of the page's policy, for example."""
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])


@contextmanager
def opened_tab(folder: Path) -> Iterator[Tab]:
    """A browser with an empty profile in `folder`, and its tab."""
    assert CHROMIUM is not None
    (their_in, write), (read, their_out) = os.pipe(), os.pipe()
    command = (
        f"exec {CHROMIUM} --headless --no-sandbox --disable-gpu --disable-background-networking "
        f"--user-data-dir={folder / 'profile'} --remote-debugging-pipe 3<&{their_in} 4>&{their_out}"
    )
    process = subprocess.Popen(
        ["bash", "-c", command],
        pass_fds=(their_in, their_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_in)
    os.close(their_out)
    try:
        yield Tab(write, read)
    finally:
        process.terminate()
        process.wait(30)
        os.close(write)
        os.close(read)
