"""Locks between processes; a lock ends with the process that holds it.

Linux and macOS lock an open file or folder itself (`flock`). Windows locks a byte of an open file
far beyond its content (`msvcrt`), and for a folder, which it does not open, a file of its own in
the user's state folder. Some network file systems lock nothing, which callers get as the result.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgelm.files.user_folders import state_folder

# Windows keeps other processes from reading a locked byte.
_LOCKED_BYTE = 0x7FFF_0000


def try_lock(handle: int) -> bool | None:
    """Lock an open file until it is closed.

    Returns:
        True if it is locked now, False if another process holds the lock, None if this system
        cannot lock files.
    """
    try:
        import fcntl
    except ImportError:
        return _try_lock_windows(handle)
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
        with _lock_file(folder, waits) as locked:
            yield locked
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


@contextmanager
def _lock_file(folder: Path, waits: Callable[[], None]) -> Iterator[bool]:
    """The lock of a folder as a file elsewhere, so that the folder stays as it is."""
    if sys.platform != "win32":  # a Python without fcntl
        yield False
        return
    from filelock import FileLock, Timeout

    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    locks = state_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{name}.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waits()
        lock.acquire()
    try:
        yield True
    finally:
        lock.release()


def _try_lock_windows(handle: int) -> bool | None:
    try:
        import msvcrt
    except ImportError:
        return None
    position = os.lseek(handle, 0, os.SEEK_CUR)
    os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except PermissionError:
        return False
    except OSError:
        return None
    finally:
        os.lseek(handle, position, os.SEEK_SET)
    return True
