"""SHA-256 of files."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

_BUFFER_BYTES = 2**18  # as in hashlib.file_digest, which Python 3.10 lacks


class _BinaryFile(Protocol):
    def readinto(self, buffer: memoryview, /) -> int: ...


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb", buffering=0) as file:
        return stream_sha256(file)


def stream_sha256(file: _BinaryFile) -> str:
    """SHA-256 of what is left to read of an open file, in hex."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    while size := file.readinto(buffer):
        digest.update(buffer[:size])
    return digest.hexdigest()


def tree_sha256(folder: Path, file_hash: Callable[[Path], str] = file_sha256) -> dict[str, str]:
    """SHA-256 of every file below a folder, in hex, by relative name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files}


def first_changed(
    folder: Path, hashes: Mapping[str, str], file_hash: Callable[[Path], str] = file_sha256
) -> str | None:
    """The name of the first file that is missing or has another hash; None if all match."""
    for name, expected in hashes.items():
        try:
            if file_hash(folder / name) != expected:
                return name
        except (OSError, ValueError):
            return name
    return None
