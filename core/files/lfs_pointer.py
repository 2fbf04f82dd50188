"""Pointers of Git LFS: small texts that a clone without LFS has in place of large files."""

from pathlib import Path

from edgelm.errors import BadCheckpoint

# The file format: git-lfs.github.com/spec/v1
_START = b"version https://git-lfs.github.com/spec/"


def check_not_pointer(path: Path, start: bytes) -> None:
    """Raise BadCheckpoint if a file that starts with these bytes is only a pointer to a file."""
    if start.startswith(_START):
        raise BadCheckpoint(
            f"{path} is a pointer of Git LFS and not the file itself; run `git lfs install` and "
            "`git lfs pull` in its repository, or download the file"
        )
