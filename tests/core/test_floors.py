"""The size of files and folders: what one can read at a time, and take in with one `ls`."""

from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "devices", "runtime", "export", "compress", "bench", "examples")
MAX_LINES = 400
MAX_FILES = 13


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_files_are_short(package: str) -> None:
    lines = {path: len(path.read_text().splitlines()) for path in sources(package)}
    assert lines
    long = {str(path.relative_to(ROOT)): count for path, count in lines.items()}
    assert {name: count for name, count in long.items() if count > MAX_LINES} == {}


def test_folders_have_few_files() -> None:
    """Subfolders do not count, nor does `__init__`, which says what the files have in common.

    The folders of tests are not counted: they mirror those of the code.
    """
    counts = Counter(
        str(path.parent.relative_to(ROOT))
        for path in sources(*PACKAGES)
        if path.name not in ("__init__.py", "__main__.py")
    )
    assert {name: count for name, count in counts.items() if count > MAX_FILES} == {}
