"""A sensor: its name, its unit and a function that reads it."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgelm.devices.detection.machine import Unread
from edgelm.devices.detection.probes import Probes, reason

Kind = Literal["memory", "power", "temperature", "clock", "throttle"]
Part = Literal["board", "cpu", "gpu"]
Found = tuple[list["Reader"], list[Unread]]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Reader:
    """A working sensor.

    `read` returns the value in `unit`, or NaN if there is none now. `where` is a file or a library,
    for messages. `part` is the measured part; `board` is everything. The unit of a throttle sensor
    gives the meaning of its values: see `throttling`.
    """

    name: str
    kind: Kind
    unit: str
    where: str
    read: Callable[[], float]
    part: Part = "board"
    close: Callable[[], None] = _nothing


class NumberFile:
    """A kernel file that holds one number; it stays open, which halves the cost of a reading."""

    def __init__(self, path: Path) -> None:
        """Open the file and read it once; OSError or ValueError if that fails."""
        self._file = path.open("rb", buffering=0)
        try:
            self.read()
        except (OSError, ValueError):
            self.close()
            raise

    def read(self) -> float:
        """The current number; NaN while the measured unit is switched off."""
        try:
            return float(os.pread(self._file.fileno(), 64, 0))
        except BlockingIOError:  # a power-gated GPU's thermal zone answers EAGAIN
            return math.nan

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def file_reader(
    probes: Probes,
    paths: Sequence[Path],
    name: str,
    kind: Kind,
    unit: str,
    *,
    scale: float = 1.0,
    part: Part = "board",
) -> Reader | Unread:
    """A sensor for one file, or for the largest number in several files that can be read."""
    files: list[NumberFile] = []
    why = "not there"
    for path in paths:
        try:
            files.append(NumberFile(path))
        except (OSError, ValueError) as error:
            why = reason(error)
    if not files:
        return Unread(name, place(probes, paths[0]), why)
    return Reader(
        name,
        kind,
        unit,
        place(probes, paths[0]),
        lambda: max(file.read() for file in files) * scale,
        part,
        lambda: close_all(files),
    )


def close_all(files: Iterable[NumberFile]) -> None:
    """Close several files."""
    for file in files:
        file.close()


def sort_out(results: Iterable[Reader | Unread]) -> Found:
    """Working and failed sensors, separated."""
    found: Found = ([], [])
    for result in results:
        if isinstance(result, Reader):
            found[0].append(result)
        else:
            found[1].append(result)
    return found


def place(probes: Probes, path: Path) -> str:
    """The path as the machine knows it."""
    return f"/{path.relative_to(probes.root)}"


def text(path: Path) -> str:
    """A small file's text; empty if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
