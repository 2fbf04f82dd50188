"""The parent's side of a measurement: start a worker process, ask, get answers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import edgelm
import edgelm.bench
from edgelm.errors import EdgeLMError
from edgelm.python310 import Self

_MAX_LINES = 5
_TIMEOUT_SECONDS = 3600.0  # of one request; the slowest, a prefill of 32k tokens, takes minutes


class WorkerFailed(EdgeLMError):
    """An engine failed in its process; the message has the last lines of its standard error."""


class Worker:
    """One engine in a process of its own.

    Args:
        module: the worker's module.
        interpreter: the Python that has the engine; None means this one.
    """

    def __init__(self, module: str, interpreter: Path | None) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="edgelm-bench-")
        folder = Path(self._scratch.name)
        self._log = (folder / "stderr").open("w+")
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
        if interpreter is not None:
            environment["PYTHONPATH"] = str(_visible_package(folder))
        self._process = subprocess.Popen(
            [str(interpreter or sys.executable), "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def ask(
        self, verb: str, *, timeout_seconds: float = _TIMEOUT_SECONDS, **arguments: Any
    ) -> dict[str, Any]:
        """Send one request and wait for its answer; an engine without one is killed.

        Raises:
            WorkerFailed: the engine reported an error, ended, or took longer than the timeout.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(timeout_seconds, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            self._process.stdin.write(json.dumps({"verb": verb, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            expired = timer.finished.is_set()
            timer.cancel()
        if not line and expired:
            raise WorkerFailed(
                f"no answer to {verb!r} within {timeout_seconds:g} s; the process was killed"
            )
        if not line:
            raise WorkerFailed(f"the process ended: {self._last_lines()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerFailed(reply["error"])
        return reply

    def close(self) -> None:
        """End the process."""
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):  # it may have died since the last answer
                self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._log.close()
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _last_lines(self) -> str:
        self._log.flush()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        if lines:
            return " / ".join(lines[-_MAX_LINES:])
        # It has closed its pipe; a crash leaves no message, but a signal number.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.returncode
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}, no message"
        return "no message"


def _visible_package(folder: Path) -> Path:
    """A folder in which `edgelm.bench.engines` can be imported, and nothing else of ours.

    A peer's interpreter must not see this environment's site-packages.
    """
    package = folder / "path" / "edgelm"
    package.mkdir(parents=True)
    (package / "__init__.py").symlink_to(Path(edgelm.__file__).resolve())
    (package / "bench").symlink_to(Path(edgelm.bench.__file__).parent.resolve())
    return package.parent
