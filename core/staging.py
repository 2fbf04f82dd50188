"""Write a folder so that a kill at any moment leaves the old one or none, never a half.

The new contents grow in a hidden sibling and are moved into place at the end. What a killed
process left behind is removed by the next one that writes to the same place.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgelm.errors import BadInput


@contextmanager
def staged_folder(target: Path, *, marker: str) -> Iterator[Path]:
    """Yield an empty folder that replaces `target` if the block ends without an error.

    Args:
        target: the folder to write.
        marker: a file that an existing `target` must hold to be replaced, so that a slip of the
            keyboard never removes somebody's home.
    """
    target = target.absolute()
    check_replaceable(target, marker=marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    staging = _sibling(target, "partial")
    staging.mkdir()
    try:
        yield staging
        _sync(staging)
        _swap(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_replaceable(target: Path, *, marker: str) -> None:
    """Raise BadInput if `target` holds something that this tool did not write."""
    if target.is_file():
        raise BadInput(f"{target} is a file; expected a folder to write to")
    if target.is_dir() and any(target.iterdir()) and not (target / marker).exists():
        raise BadInput(
            f"{target} exists and holds no {marker}; it will not be replaced, choose another "
            "folder or remove it"
        )


def replace_file(target: Path, content: bytes) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = _sibling(target, "partial")
    try:
        with staging.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(target)
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(target)  # writing tells none: which disk is full?
        raise
    finally:
        staging.unlink(missing_ok=True)


def remove_abandoned_files(folder: Path) -> None:
    """Remove what killed processes left of files that `replace_file` was writing here."""
    for path in folder.glob(".*.partial-*"):
        if path.is_file() and _is_abandoned(path):
            path.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path, waits: Callable[[], None]) -> Iterator[bool]:
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
    alone = True
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(handle)


def _sibling(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}-{os.getpid()}")


def _swap(staging: Path, target: Path) -> None:
    old = _sibling(target, "old")
    if target.exists():
        target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    # Without this a power cut can leave a renamed folder of empty files.
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _remove_abandoned(target: Path) -> None:
    for path in target.parent.glob(f".{target.name}.*-*"):
        if _is_abandoned(path):
            if f".{target.name}.old-" in path.name and not target.exists():
                path.rename(target)  # killed between the two renames: the old one comes back
            else:
                shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    pid = path.name.rpartition("-")[2]
    # Our own pid: in a container every process may have the pid of the one before.
    return pid.isdigit() and (int(pid) == os.getpid() or not _alive(int(pid)))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
