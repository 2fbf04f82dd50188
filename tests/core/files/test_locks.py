"""Locks between processes, and what happens without them."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.files.locks import exclusive_lock
from edgelm.files.replacing import remove_abandoned_files, replace_file
from tests.core.files.staged_writer import MARKER, write
from tests.folders import contents


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A lock of another process is waited for, and ends with it."""
    code = "import sys, edgelm.files.staging as s, pathlib\n"
    code += (
        "with s.exclusive_lock(pathlib.Path(sys.argv[1]), print): print('in', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    waited: list[bool] = []

    def waits() -> None:
        waited.append(True)
        other.kill()

    with exclusive_lock(tmp_path, waits) as alone:
        assert alone
        assert waited == [True]
        assert other.wait(60) == -signal.SIGKILL
    other.stdout.close()
    with exclusive_lock(tmp_path, waits) as alone:
        assert alone
    assert waited == [True]


def test_without_locks_all_are_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuses(*_: object) -> None:
        raise OSError(errno.EBADF, "as NFS does for a folder")

    monkeypatch.setattr(fcntl, "flock", refuses)
    with exclusive_lock(tmp_path, waits=pytest.fail) as alone:
        assert not alone


def test_without_locks_it_still_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: nothing is taken for abandoned then."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    left = tmp_path / ".table.partial-edgelm-0123456789abcdef"
    left.touch()
    replace_file(tmp_path / "table", b"new")
    remove_abandoned_files(tmp_path)
    for text in ("old", "new"):
        write(tmp_path / "bundle", text)
    assert contents(tmp_path) == {"table": b"new", f"bundle/{MARKER}": b"new", left.name: b""}
