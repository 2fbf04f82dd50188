"""Windows and macOS, as far as Linux can show it: nothing needs what Python lacks there.

Nothing was run on those systems. A process without their missing modules and functions, in which
`sys.platform` is theirs, imports core, devices and runtime and runs the code that touches files.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.python310 import tomllib

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path for package in ("core", "devices", "runtime") for path in (ROOT / package).rglob("*.py")
]
POSIX_ONLY = {"fcntl", "termios", "tty", "pty", "pwd", "grp", "resource", "syslog"}


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_files_locks_and_trust(system: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {
        "HOME": str(home),
        "LOCALAPPDATA": str(home / "AppData"),
        "USERPROFILE": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CACHE_HOME": str(home / "cache"),
    }
    command = [sys.executable, "-m", "tests.core.other_system", system, str(tmp_path / "work")]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    steps = done.stdout.split("\n")
    assert steps == ["imported True", "files", "staging", "locks", "trust", "machine", ""]


def test_modules_of_posix_are_imported_where_they_are_used() -> None:
    """At the top of a file they would make it, and all that import it, fail on Windows."""
    found = []
    for path in SOURCES:
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.Import):
                names = [alias.name for alias in statement.names]
            elif isinstance(statement, ast.ImportFrom):
                names = [statement.module or ""]
            else:
                continue
            found += [(path.name, name) for name in names if name.split(".")[0] in POSIX_ONLY]
    assert found == []


def test_only_locks_ask_for_fcntl() -> None:
    asking = [path.name for path in SOURCES if "import fcntl" in path.read_text()]
    assert asking == ["locks.py"]


@pytest.mark.parametrize("flag", ["O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_DIRECTORY"])
def test_flags_of_posix_are_optional(flag: str) -> None:
    """filelock's implementation for this system needs some, so the program above has them."""
    assert not [path for path in SOURCES if f"os.{flag}" in path.read_text()]


def test_nobody_asks_a_process_whether_it_lives() -> None:
    """`os.kill(pid, 0)` ends the process on Windows."""
    assert not [path for path in SOURCES if "os.kill(" in path.read_text()]


def test_packages_for_windows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (filelock,) = [one for one in project["dependencies"] if one.startswith("filelock")]
    assert filelock.endswith("sys_platform == 'win32'")
