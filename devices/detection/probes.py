"""Access to the machine for detection, sensors and doctor; tests replace it with recordings."""

import importlib
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from edgelm.devices.detection.machine import Unread

_TIMEOUT_S = 5.0


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except subprocess.SubprocessError as error:
        raise OSError(f"{command[0]}: {error}") from None
    return done.stdout


def _pynvml() -> Any:
    """NVIDIA's own binding of NVML; ImportError without the package `nvidia-ml-py`."""
    return importlib.import_module("pynvml")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _threads() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux; other systems pin no process
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def reason(error: Exception) -> str:
    """The reason why something could not be read, in a few words."""
    if isinstance(error, PermissionError):
        return "only root may read it"
    if isinstance(error, FileNotFoundError):
        return "not there"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


@dataclass(frozen=True)
class Probes:
    """Files, commands, NVML and installed packages of this machine.

    `root` replaces `/`. `run` returns a command's output, or raises OSError. `pynvml` returns the
    module of that name, or raises ImportError. `version` returns the version of an installed
    distribution, or None. `system` returns kernel and architecture, `threads` the number of
    hardware threads that this process may use.
    """

    root: Path = Path("/")
    run: Callable[[Sequence[str]], str] = _run
    pynvml: Callable[[], Any] = _pynvml
    version: Callable[[str], str | None] = _version
    environment: dict[str, str] | None = field(default=None)
    system: Callable[[], str] = _system
    threads: Callable[[], int] = _threads

    def path(self, path: str) -> Path:
        """The place of an absolute path of the machine."""
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str:
        """A file's text without surrounding white space and NULs; OSError if it cannot be read."""
        return self.path(path).read_text(errors="replace").strip("\0 \t\r\n")

    def read(self, what: str, path: str, unread: list[Unread]) -> str:
        """A file's text; if it cannot be read, an empty text and an entry in `unread`."""
        try:
            return self.text(path)
        except OSError as error:
            unread.append(Unread(what, path, reason(error)))
            return ""

    def glob(self, pattern: str) -> list[Path]:
        """Files that match an absolute pattern, sorted, as far as they can be listed."""
        return sorted(self.root.glob(pattern.lstrip("/")))
