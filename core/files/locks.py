"""Locks between processes; a lock ends with the process that holds it.

They use `flock`. Without it (Windows, some network file systems) nothing is locked, and callers are
told so.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def try_lock(handle: int) -> bool | None:
    """Lock an open file until it is closed.

    Returns:
        True if it is locked now, False if another process holds the lock, None if this system
        cannot lock files.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def exclusive_lock(folder: Path, waits: Callable[[], None]) -> Iterator[bool]:
    """Let one process at a time into this block for a folder.

    Yields True, or False if this system cannot lock files, where all processes enter at once.
    `waits` is called before waiting for another process.
    """
    try:
        import fcntl
    except ImportError:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        alone = try_lock(handle)
        if alone is False:
            waits()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield alone is not None
    finally:
        os.close(handle)
