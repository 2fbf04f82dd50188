"""Safe paths of a bundle's files: inside its folder, and regular files only."""

import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from edgelm.errors import BadBundle


class FileState(NamedTuple):
    """Values that change when a file is replaced or written to."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def inside(folder: Path, name: str) -> Path:
    """The path of a bundle's file.

    Raises:
        BadBundle: it is outside the folder, by its name or through a link.
    """
    path = folder / name
    # realpath, since Path.resolve raises for circular links.
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise BadBundle(
            f"{folder}: {name!r} lies outside the bundle; do not use this bundle{_link(path)}"
        )
    return path


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        BadBundle: it is missing, unreadable, or a folder, a pipe or a device.
    """
    try:
        # Non-blocking: opening a named pipe would wait for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise BadBundle(f"{path} cannot be read: {error.strerror}; {_AGAIN}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadBundle(f"{path} is not a regular file; {_AGAIN}")
    return os.fdopen(handle, "rb")


def file_state(path: Path) -> FileState | None:
    """The state of the file at a path; None if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return _state(found)


def open_state(file: BufferedReader) -> FileState:
    """The state of an open file."""
    return _state(os.fstat(file.fileno()))


def _state(found: os.stat_result) -> FileState:
    return FileState(
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


def _link(path: Path) -> str:
    """What to do where a download left links in place of files, as the cache of a hub has them."""
    if not path.is_symlink():
        return ""
    return " as it is: the file is a link; if you made it, copy the bundle without links (cp -rL)"


_AGAIN = "copy or export the bundle again"
