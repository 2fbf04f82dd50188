"""Locks between processes, which end with the process that holds them.

`flock` is used where there is one. Elsewhere (Windows, some network file systems) nothing is
locked: callers learn that and do without.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def try_lock(handle: int) -> bool | None:
    """Lock an open file, which stays locked until it is closed.

    Returns:
        False if somebody else holds it, None if this system cannot lock it.
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
    """Let one process at a time into this block for a folder; `waits` is called before waiting.

    The lock ends with the process that holds it. Without file locks (Windows, some network file
    systems) all are let in, and the block is given False.
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
