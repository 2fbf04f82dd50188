"""Where detection, sensors and the doctor look. Tests hand in a recorded machine."""

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

_PATIENCE_S = 5.0


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_S, check=True
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
    """Why something could not be read, in a few words."""
    if isinstance(error, PermissionError):
        return "only root may read it"
    if isinstance(error, FileNotFoundError):
        return "not there"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


@dataclass(frozen=True)
class Probes:
    """The machine at hand: its files, its commands, its NVML, its installed packages.

    `root` stands for `/`. `run` gives a command's output and raises OSError when it cannot.
    `pynvml` gives the module of that name or raises ImportError. `version` gives the version
    of an installed distribution, or None. `system` gives kernel and architecture, `threads` the
    hardware threads that this process is bound to.
    """

    root: Path = Path("/")
    run: Callable[[Sequence[str]], str] = _run
    pynvml: Callable[[], Any] = _pynvml
    version: Callable[[str], str | None] = _version
    environment: dict[str, str] | None = field(default=None)
    system: Callable[[], str] = _system
    threads: Callable[[], int] = _threads

    def path(self, path: str) -> Path:
        """Where an absolute path of the machine lies."""
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str:
        """A file's text without surrounding blanks and NULs; OSError when it cannot be read."""
        return self.path(path).read_text(errors="replace").strip("\0 \t\r\n")

    def read(self, what: str, path: str, unread: list[Unread]) -> str:
        """The same, but empty where it cannot be read, with an entry in `unread`."""
        try:
            return self.text(path)
        except OSError as error:
            unread.append(Unread(what, path, reason(error)))
            return ""

    def glob(self, pattern: str) -> list[Path]:
        """The files that match an absolute pattern, sorted; what may not be listed is left out."""
        return sorted(self.root.glob(pattern.lstrip("/")))
