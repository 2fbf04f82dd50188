"""Take the disk space of a file before it is written through a memory map.

A sparse file takes space when a page of it is written. If the disk is full then, the system ends
the process with SIGBUS, which nothing can catch and which says nothing.
"""

import errno
import os
from pathlib import Path

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


def reserve(path: Path, size: int, *, start: int = 0) -> None:
    """Take the space of `size` bytes of a file from `start`; what is new reads as zeros.

    The file is made if there is none, and extended where it is shorter.

    On systems without `posix_fallocate` (Windows, macOS) and on file systems that refuse it, the
    file keeps its size.

    Raises:
        OSError: the disk is full, with the file's name; a file that was made here is removed.
    """
    is_new = not path.exists()
    with path.open("w+b" if is_new else "r+b") as file:
        full = _allocate(file.fileno(), start, size)
    if full is None:
        return
    if is_new:
        path.unlink(missing_ok=True)
    raise OSError(full, os.strerror(full), str(path))


def _allocate(file: int, start: int, size: int) -> int | None:
    """The number of the error if the disk is full."""
    if not size or not hasattr(os, "posix_fallocate"):
        return None
    try:
        os.posix_fallocate(file, start, size)
    except OSError as error:
        return error.errno if error.errno in _FULL else None
    return None
