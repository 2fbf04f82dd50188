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
    try:
        with path.open("w+b" if is_new else "r+b") as file:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), start, size)
    except OSError as error:
        code = error.errno
        if code is None or code not in _FULL:
            return
        if is_new:
            path.unlink(missing_ok=True)
        raise OSError(code, os.strerror(code), str(path)) from None
