"""What a folder holds, to compare it before and after."""

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
