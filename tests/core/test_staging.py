"""A kill at any moment leaves the old folder or none; only folders of our own are replaced."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.errors import BadInput
from edgelm.staging import (
    alone_in,
    check_replaceable,
    remove_abandoned_files,
    replace_file,
    staged_folder,
)
from tests.folders import contents

MARKER = "bundle.json"
_KILLED = """
import os, pathlib, signal, sys
from edgelm.staging import staged_folder

target, moment = pathlib.Path(sys.argv[1]), int(sys.argv[2])


def die(moment_reached):
    if moment_reached == moment:
        os.kill(os.getpid(), signal.SIGKILL)


renames = 0
rename = pathlib.Path.rename


def counted(path, to):
    global renames
    renames += 1
    die(renames)
    return rename(path, to)


pathlib.Path.rename = counted
with staged_folder(target, marker="bundle.json") as folder:
    (folder / "bundle.json").write_text("new")
    die(0)
"""

_KILLED_FILE = """
import os, pathlib, signal, sys
from edgelm.staging import replace_file

moment = sys.argv[2]


def dying(*_):
    os.kill(os.getpid(), signal.SIGKILL)


if moment == "writing":
    os.fsync = dying
else:
    pathlib.Path.replace = dying
replace_file(pathlib.Path(sys.argv[1]), b"new")
"""


def write(target: Path, text: str) -> None:
    with staged_folder(target, marker=MARKER) as folder:
        (folder / MARKER).write_text(text)


def killed_while_writing(target: Path, moment: int) -> None:
    """Run a process that is killed in the block (0) or right before its n-th rename."""
    command = [sys.executable, "-c", _KILLED, str(target), str(moment)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with staged_folder(target, marker=MARKER) as folder:
        (folder / MARKER).write_text("new")
        assert not target.exists()
        assert folder.parent == target.parent  # the same file system: the move is one rename
    assert contents(target) == {MARKER: b"new"}
    assert list(target.parent.iterdir()) == [target]


def test_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    write(target, "old")
    (target / "left-over").write_text("x")
    write(target, "new")
    assert contents(target) == {MARKER: b"new"}
    assert list(tmp_path.iterdir()) == [target]


def test_relative_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("bundle"), "new")
    assert contents(tmp_path) == {f"bundle/{MARKER}": b"new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_in_the_block_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "bundle"
    write(target, "old")

    def interrupted() -> None:
        with staged_folder(target, marker=MARKER) as folder:
            (folder / MARKER).write_text("half")
            raise error("in the midst of it")

    with pytest.raises(error, match="in the midst of it"):
        interrupted()
    assert contents(tmp_path) == {f"bundle/{MARKER}": b"old"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("moment", [0, 1], ids=["while-writing", "before-the-move"])
def test_kill_leaves_none_if_there_was_none(tmp_path: Path, moment: int) -> None:
    target = tmp_path / "bundle"
    killed_while_writing(target, moment)
    assert not target.exists()
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == [".bundle.partial"]

    write(target, "next")
    assert list(tmp_path.iterdir()) == [target]
    assert contents(target) == {MARKER: b"next"}


@pytest.mark.parametrize("moment", [0, 1], ids=["while-writing", "before-the-swap"])
def test_kill_leaves_the_old_one(tmp_path: Path, moment: int) -> None:
    target = tmp_path / "bundle"
    write(target, "old")
    killed_while_writing(target, moment)
    assert contents(target) == {MARKER: b"old"}

    write(target, "next")
    assert list(tmp_path.iterdir()) == [target]
    assert contents(target) == {MARKER: b"next"}


def test_kill_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    write(target, "old")
    killed_while_writing(target, 2)
    kept = [path for path in tmp_path.iterdir() if contents(path) == {MARKER: b"old"}]
    assert len(kept) == 1

    def fails() -> None:
        with staged_folder(target, marker=MARKER):
            assert contents(target) == {MARKER: b"old"}  # it is back before any work
            raise ValueError("again")

    with pytest.raises(ValueError, match="again"):
        fails()
    assert contents(target) == {MARKER: b"old"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("kind", ["partial", "old"])
def test_left_over_with_our_own_process_id_is_cleaned(tmp_path: Path, kind: str) -> None:
    # In a container every run may get the process id that the killed one had.
    target = tmp_path / "bundle"
    write(target, "old")
    left = tmp_path / f".bundle.{kind}-{os.getpid()}"
    left.mkdir()
    (left / MARKER).write_text("half")
    write(target, "new")
    assert contents(tmp_path) == {f"bundle/{MARKER}": b"new"}


def test_folder_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    # The parent of this test lives; so does, for all we know, the export that it is.
    other = tmp_path / f".bundle.partial-{os.getppid()}"
    other.mkdir()
    write(tmp_path / "bundle", "new")
    assert other.is_dir()


def test_hidden_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    names = [".bundle.partial-notes", ".bundle2.partial-999999999", ".bundle.d"]
    for name in names:
        (tmp_path / name).mkdir()
    write(tmp_path / "bundle", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "bundle"])


def test_refuses_a_folder_without_the_marker(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match=r"holds no bundle\.json; it will not be replaced"):
        write(tmp_path, "new")
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_refuses_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.write_text("x")
    with pytest.raises(BadInput, match="is a file; expected a folder to write to"):
        write(path, "new")
    assert path.read_text() == "x"


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    check_replaceable(target, marker=MARKER)
    write(target, "new")
    assert contents(target) == {MARKER: b"new"}


def test_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "table.toml"
    replace_file(target, b"new")
    assert contents(tmp_path) == {"deep/table.toml": b"new"}
    replace_file(target, b"newer")
    assert contents(tmp_path) == {"deep/table.toml": b"newer"}


def test_relative_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    replace_file(Path("table.toml"), b"new")
    assert contents(tmp_path) == {"table.toml": b"new"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_error_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fails(_: int) -> None:
        raise error

    target = tmp_path / "table.toml"
    replace_file(target, b"old")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(type(error)):
        replace_file(target, b"new")
    assert contents(tmp_path) == {"table.toml": b"old"}


@pytest.mark.parametrize("moment", ["writing", "moving"])
def test_kill_leaves_the_old_file(tmp_path: Path, moment: str) -> None:
    target = tmp_path / "table.toml"
    replace_file(target, b"old")
    command = [sys.executable, "-c", _KILLED_FILE, str(target), moment]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert target.read_bytes() == b"old"
    replace_file(target, b"next")
    assert target.read_bytes() == b"next"


def test_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "table", b"new")
    assert list(tmp_path.iterdir()) == [tmp_path / "table"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A lock of another process is waited for, and ends with it."""
    code = "import sys, edgelm.staging as s, pathlib\n"
    code += "with s.alone_in(pathlib.Path(sys.argv[1]), print): print('in', flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    waited: list[bool] = []

    def waits() -> None:
        waited.append(True)
        other.kill()

    with alone_in(tmp_path, waits) as alone:
        assert alone
        assert waited == [True]
        assert other.wait(60) == -signal.SIGKILL
    other.stdout.close()
    with alone_in(tmp_path, waits) as alone:
        assert alone
    assert waited == [True]


def test_without_locks_all_are_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuses(*_: object) -> None:
        raise OSError(errno.EBADF, "as NFS does for a folder")

    monkeypatch.setattr(fcntl, "flock", refuses)
    with alone_in(tmp_path, waits=pytest.fail) as alone:
        assert not alone


def test_only_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    parent = os.getppid()  # alive, and not this one
    kept = {f".a.partial-{parent}": b"being written", "b.partial-1": b"somebody's"}
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / f".c.partial-{2**22 + 1}").write_bytes(b"left by a killed process")
    remove_abandoned_files(tmp_path)
    assert contents(tmp_path) == kept
