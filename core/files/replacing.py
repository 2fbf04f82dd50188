"""Write a file atomically: after a kill there is the old or the new one, never a partial one.

The content is written to a hidden file next to it, `.NAME.partial-edgelm-` and a random part, which
is locked meanwhile. Such a file without a lock was left by a killed process, and the next writer
of the same file removes it. Windows moves no open file, so that the lock ends before the move:
there, only an old file counts as abandoned.
"""

import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from edgelm.files.locks import try_lock

_TAG = "partial-edgelm-"
_HIDDEN = re.compile(rf"\..+\.{_TAG}[0-9a-f]{{16}}", re.DOTALL)
_MAX_NAME_BYTES = 255  # of common file systems
_RANDOM_BYTES = 8
# Does not follow an existing link or write to an existing file. Windows has no O_NOFOLLOW.
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_ABANDONED_S = 24 * 3600  # on Windows


def replace_file(target: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file atomically. A link is replaced, not followed.

    Args:
        target: the file; missing parent folders are created.
        content: the whole content.
        mode: permissions, before the umask.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    with replacing(target, mode=mode) as file:
        file.write(content)


@contextmanager
def replacing(target: Path, *, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """As `replace_file`, for content that is written piece by piece.

    The file appears when the context ends; after an exception in it, the old one is unchanged.

    Raises:
        OSError: it cannot be written.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _writing(target, mode) as file:
            yield file
    except OSError as error:
        if error.errno:
            error.filename = str(target)  # not the hidden name
            del error.filename2  # with None, the text of the error would end in "-> None"
        raise


def remove_abandoned_files(folder: Path) -> None:
    """Remove hidden files that killed processes left in `replace_file`.

    Nothing is removed where files cannot be locked: they may still be in use.
    """
    for path in folder.iterdir():
        if not is_hidden_name(path.name):
            continue
        with suppress(FileNotFoundError):  # another process has just renamed it
            if stat.S_ISREG(path.lstat().st_mode):
                _remove_unlocked(path)


def hidden_sibling(target: Path) -> Path:
    """A new hidden name next to a file or folder."""
    return target.with_name(_hidden_start(target.name) + secrets.token_hex(_RANDOM_BYTES))


def is_hidden_name(name: str) -> bool:
    """Whether a name is one of `hidden_sibling`."""
    return _HIDDEN.fullmatch(name) is not None


def sync(written: Path) -> None:
    """Wait until a file, or a folder with its contents, is on the disk.

    Otherwise a power failure could leave a renamed folder of empty files.
    """
    for path in (written, *written.rglob("*")):
        if path.is_symlink():
            continue
        if path.is_file():
            _sync_file(path)
        elif path.is_dir():
            sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk, if the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows does not open folders; others may be writable but not readable
        return
    try:
        os.fsync(handle)
    except OSError:  # not supported by some network file systems
        pass
    finally:
        os.close(handle)


@contextmanager
def _writing(target: Path, mode: int) -> Iterator[IO[bytes]]:
    _remove_abandoned_of(target)
    staging, handle, locked = _new_file(target, mode)
    while_open = locked and moves_open_files()  # otherwise it would look abandoned
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if while_open:
                staging.replace(target)
        if not while_open:
            staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)
    sync_folder(target.parent)


def _hidden_start(name: str) -> str:
    """The start of the hidden names of a file or folder, all but their random part."""
    end = f".{_TAG}"
    name_bytes = _MAX_NAME_BYTES - len(end) - 1 - 2 * _RANDOM_BYTES
    return "." + os.fsencode(name)[:name_bytes].decode(errors="ignore") + end


def _remove_abandoned_of(target: Path) -> None:
    """Remove what killed writers of the same file left."""
    start, names = _hidden_start(target.name), list[str]()
    with suppress(PermissionError):  # a folder may be writable but not readable
        names = [name for name in os.listdir(target.parent) if name.startswith(start)]
    for name in filter(is_hidden_name, names):
        path = target.with_name(name)
        with suppress(FileNotFoundError):  # its writer has ended meanwhile
            if stat.S_ISREG(path.lstat().st_mode):
                _remove_unlocked(path)


def _new_file(target: Path, mode: int) -> tuple[Path, int, bool]:
    """A new hidden file next to a target, open for writing, and whether it is locked."""
    while True:
        staging = hidden_sibling(target)
        handle = os.open(staging, _NEW | _BINARY, mode)
        locked = try_lock(handle)
        # Before it was locked, another process may have removed it as abandoned.
        if locked is None or (locked and os.fstat(handle).st_nlink):
            return staging, handle, bool(locked)
        os.close(handle)
        staging.unlink(missing_ok=True)


def _sync_file(path: Path) -> None:
    try:
        # Windows only syncs files that are open for writing.
        handle = os.open(path, os.O_RDONLY if moves_open_files() else os.O_RDWR | _BINARY)
    except PermissionError:
        if moves_open_files():
            raise
        return  # a read-only file on Windows; its writer has closed it
    try:
        os.fsync(handle)
    except OSError as error:
        error.filename = str(
            path
        )  # the error has no name, and the user needs to know which disk is full
        raise
    finally:
        os.close(handle)


def _remove_unlocked(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDWR | _BINARY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:  # removed meanwhile, or not readable
        return
    try:
        abandoned = try_lock(handle)
        if abandoned and moves_open_files():
            path.unlink(missing_ok=True)
            return
        age_s = time.time() - os.fstat(handle).st_mtime
    finally:
        os.close(handle)
    if abandoned and age_s > _ABANDONED_S:
        with suppress(OSError):  # somebody opened it meanwhile
            path.unlink(missing_ok=True)


def moves_open_files() -> bool:
    """Whether a file can be renamed and removed while it is open."""
    return sys.platform != "win32"
