"""The code uses nothing that Python 3.10, JetPack 6's, does not have.

All packages: a Jetson also finalizes (`edge-export --finalize`) and measures (`edge-bench`).
The suite itself may run on a newer Python: vermin finds names and syntax of newer ones.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.slow import slow_but

ROOT = Path(__file__).resolve().parents[2]
PYTHON = [sys.executable, "-c", "import vermin; vermin.main()"]
VERMIN = [*PYTHON, "-t=3.10-", "--violations", "--no-tips"]
# Chosen by `sys.version_info`, which vermin does not follow.
BACKPORTS = ["--exclude", "tomllib", "--exclude", "typing.Self", "--exclude", "typing.Unpack"]
NEWER = pytest.mark.skipif(sys.version_info < (3, 11), reason="syntax that this Python cannot read")


def newer_than_3_10(*paths: Path, excluding: list[str]) -> str:
    command = [*VERMIN, *excluding, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Minimum required versions" in done.stdout, done.stderr
    return done.stdout if done.returncode else ""


@pytest.mark.parametrize(
    "package",
    slow_but(
        ["bench", "compress", "core", "devices", "export", "runtime"],
        ["core", "devices", "runtime"],
    ),
)
def test_packages_use_python_3_10(package: str) -> None:
    others = [path for path in (ROOT / package).rglob("*.py") if path.name != "python310.py"]
    assert newer_than_3_10(*others, excluding=[]) == ""


def test_backports_are_all_that_is_chosen_by_version() -> None:
    path = ROOT / "core" / "python310.py"
    assert newer_than_3_10(path, excluding=BACKPORTS) == ""
    assert "3.11" in newer_than_3_10(path, excluding=[])


@pytest.mark.parametrize(
    "code",
    [
        "import tomllib",
        "from typing import Self",
        "from datetime import UTC",
        "from enum import StrEnum",
        "import hashlib\nhashlib.file_digest",
        pytest.param("try:\n    pass\nexcept* ValueError:\n    pass", marks=NEWER),
        "import itertools\nitertools.batched",
    ],
    ids=lambda code: code.splitlines()[0],
)
def test_newer_names_and_syntax_are_found(tmp_path: Path, code: str) -> None:
    path = tmp_path / "newer.py"
    path.write_text(code + "\n")
    assert newer_than_3_10(path, excluding=[]) != ""
