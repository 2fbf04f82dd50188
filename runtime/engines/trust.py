"""Which compiled engines this machine trusts.

An engine is native code, and TensorRT's validity check does not detect changes made on purpose: an
engine runs here if this machine compiled it, or if its user trusted it. What is trusted is the
SHA-256 of the file, so that any change to it ends the trust.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgelm.errors import BadInput
from edgelm.files.locks import exclusive_lock
from edgelm.files.user_folders import state_folder

_SHA256 = re.compile(r"[0-9a-f]{64}")
_OWNER_ONLY = 0o600  # who can add a line can run code here
_MAX_BYTES = 64 << 20


def trust(sha256: str) -> None:
    """Trust an engine from now on; several processes may at once.

    Raises:
        BadInput: not a SHA-256, or the list of trusted engines cannot be read or written.
    """
    if not _SHA256.fullmatch(sha256):
        raise BadInput(f"{sha256!r} is not a SHA-256 in hex, so it cannot be trusted")
    path = _store()
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with exclusive_lock(path.parent, lambda: None):
            _append(path, sha256)


def is_trusted(sha256: str) -> bool:
    """Whether this machine compiled it or its user trusts it.

    Raises:
        BadInput: the list of trusted engines cannot be read.
    """
    path = _store()
    with _explained(path):
        try:
            handle = _open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return sha256 in _read(handle, path).split()
        finally:
            os.close(handle)


def _append(path: Path, sha256: str) -> None:
    handle = _open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        os.chmod(path, _OWNER_ONLY)
        text = _read(handle, path)
        if sha256 not in text.split():
            # A kill may have left half a line.
            start = "" if text.endswith("\n") or not text else "\n"
            os.write(handle, f"{start}{sha256}\n".encode())
            os.fsync(handle)
    finally:
        os.close(handle)


def _store() -> Path:
    return state_folder() / "trusted-engines.txt"


def _open(path: Path, flags: int) -> int:
    # Not blocking: opening a named pipe waits for a writer otherwise. Windows changes line ends of
    # files that are not binary.
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, _OWNER_ONLY)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadInput(_message(path, "it is not a plain file"))
    return handle


def _read(handle: int, path: Path) -> str:
    size = os.fstat(handle).st_size
    if size > _MAX_BYTES:
        raise BadInput(_message(path, f"it has {size} bytes"))
    os.lseek(handle, 0, os.SEEK_SET)
    with os.fdopen(os.dup(handle), "rb") as file:
        return file.read(_MAX_BYTES).decode()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError:
        raise BadInput(_message(path, "it is not text")) from None
    except OSError as error:
        raise BadInput(_message(path, str(error.strerror or error))) from None


def _message(path: Path, reason: str) -> str:
    return (
        f"the list of trusted engines, {path}, cannot be used: {reason}; make it a text file of "
        "yours, or move it away and trust or compile engines again"
    )
