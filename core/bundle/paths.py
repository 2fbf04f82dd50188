"""Paths of a bundle's files: below its folder, plain files, opened without following a surprise."""

import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from edgelm.errors import BadBundle


class FileState(NamedTuple):
    """What changes when a file is replaced or written to."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def inside(folder: Path, name: str) -> Path:
    """The path of a bundle's file.

    Raises:
        BadBundle: it lies outside the folder, by its name or through a link.
    """
    path = folder / name
    # realpath, since Path.resolve raises for links in a circle.
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise BadBundle(f"{folder}: {name!r} lies outside the bundle; do not use this bundle")
    return path


def open_plain(path: Path) -> BufferedReader:
    """Open a plain file to read.

    Raises:
        BadBundle: it is missing, a folder, a pipe or a device, or may not be read.
    """
    try:
        # Not blocking: opening a named pipe waits for a writer otherwise.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise BadBundle(f"{path} cannot be read: {error.strerror}; {_AGAIN}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadBundle(f"{path} is not a plain file; {_AGAIN}")
    return os.fdopen(handle, "rb")


def file_state(path: Path) -> FileState | None:
    """The state of the file that a path leads to; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return FileState(
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


_AGAIN = "copy or export the bundle again"
