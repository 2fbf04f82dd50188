"""SHA-256 of files."""

import hashlib
from collections.abc import Mapping
from pathlib import Path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, in hex, by relative name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def first_changed(folder: Path, hashes: Mapping[str, str]) -> str | None:
    """The name of the first file that is missing or has another hash; None if all match."""
    for name, expected in hashes.items():
        try:
            if file_sha256(folder / name) != expected:
                return name
        except (OSError, ValueError):
            return name
    return None
