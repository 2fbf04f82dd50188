"""One sensor: its name, its unit and a way to read it."""

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
    """One sensor that works.

    `read` gives the value in `unit`; not-a-number says that there is none for now. `where` is a
    file or a library, for messages. `part` is what the value is about; `board` is everything. A
    throttle sensor's unit says how to understand its values: see `throttling`.
    """

    name: str
    kind: Kind
    unit: str
    where: str
    read: Callable[[], float]
    part: Part = "board"
    close: Callable[[], None] = _nothing


class NumberFile:
    """A file of the kernel that holds one number; it stays open, which halves the cost."""

    def __init__(self, path: Path) -> None:
        """Open and read it; OSError or ValueError when that is not possible."""
        self._file = path.open("rb", buffering=0)
        try:
            self.read()
        except (OSError, ValueError):
            self.close()
            raise

    def read(self) -> float:
        """Its number now; not-a-number while the unit behind it is switched off."""
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
    """A sensor that is one file, or the largest number in several; as far as they can be read."""
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
    """Those that work, and those that do not."""
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
    """A small file's text; empty when it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
