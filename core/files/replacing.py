"""Write a file so that a kill at any moment leaves the old one or the new one, never a half.

The content is written under a hidden name of its own beside the file, `.NAME.partial-edgelm-` and
a random part, which is locked while it is written. A name like that without a lock is what a
killed process left.
"""

import os
import re
import secrets
import stat
from pathlib import Path

from edgelm.files.locks import try_lock

_TAG = "partial-edgelm-"
_HIDDEN = re.compile(rf"\..+\.{_TAG}[0-9a-f]{{16}}", re.DOTALL)
_MAX_NAME_BYTES = 255  # of every common file system
# A planted link is not followed, a planted file not written to. Windows has no O_NOFOLLOW.
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def replace_file(target: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one.

    A link is replaced, not followed.

    Args:
        target: its folders are made.
        content: all of it.
        mode: permissions, less the umask.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(target, content, mode)
    except OSError as error:
        if error.errno:
            error.filename, error.filename2 = str(target), None  # not our hidden name
        raise


def remove_abandoned_files(folder: Path) -> None:
    """Remove what killed processes left of files that `replace_file` was writing here.

    Where files cannot be locked nothing is removed, since nobody can say what was left.
    """
    for path in folder.iterdir():
        if is_hidden_name(path.name) and stat.S_ISREG(path.lstat().st_mode):
            _remove_unlocked(path)


def hidden_sibling(target: Path) -> Path:
    """A new hidden name beside a file or folder, which says what it is for."""
    end = f".{_TAG}{secrets.token_hex(8)}"
    name = os.fsencode(target.name)[: _MAX_NAME_BYTES - len(end) - 1]
    return target.with_name("." + name.decode(errors="ignore") + end)


def is_hidden_name(name: str) -> bool:
    """Whether `hidden_sibling` makes such names."""
    return _HIDDEN.fullmatch(name) is not None


def sync(written: Path) -> None:
    """Wait until a file, or a folder with all below it, is on the disk.

    Without this a power cut can leave a renamed folder of empty files.
    """
    for path in (written, *written.rglob("*")):
        if path.is_symlink():
            continue
        if path.is_file():
            _sync_file(path)
        elif path.is_dir():
            sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk, where a system can say so."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders; some may be written to and not read
        return
    try:
        os.fsync(handle)
    except OSError:  # file systems without it, such as some over a network
        pass
    finally:
        os.close(handle)


def _write(target: Path, content: bytes, mode: int) -> None:
    staging, handle, locked = _new_file(target, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if locked:  # while it is: unlocked it would look abandoned
                staging.replace(target)
        if not locked:  # Windows moves no open files
            staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)
    sync_folder(target.parent)


def _new_file(target: Path, mode: int) -> tuple[Path, int, bool]:
    """A hidden file beside a target, open for writing, and whether it is locked."""
    while True:
        staging = hidden_sibling(target)
        handle = os.open(staging, _NEW | _BINARY, mode)
        locked = try_lock(handle)
        # Before it was locked, another process may have taken it for an abandoned one.
        if locked is None or (locked and os.fstat(handle).st_nlink):
            return staging, handle, bool(locked)
        os.close(handle)
        staging.unlink(missing_ok=True)


def _sync_file(path: Path) -> None:
    # Windows syncs only what is open for writing.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        error.filename = str(path)  # it names none: which disk is full?
        raise
    finally:
        os.close(handle)


def _remove_unlocked(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:  # gone by now, or not ours to read
        return
    try:
        if try_lock(handle):
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)
