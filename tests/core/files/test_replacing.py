"""A file is written atomically, and what killed processes left is removed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.files.locks import try_lock
from edgelm.files.replacing import hidden_sibling, remove_abandoned_files, replace_file
from tests.folders import contents

_KILLED_FILE = """
import os, pathlib, signal, sys
from edgelm.files.staging import replace_file

moment = sys.argv[2]


def dying(*_):
    os.kill(os.getpid(), signal.SIGKILL)


if moment == "writing":
    os.fsync = dying
else:
    pathlib.Path.replace = dying
replace_file(pathlib.Path(sys.argv[1]), b"new")
"""


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
    assert len(list(tmp_path.iterdir())) == 2
    replace_file(target, b"next")
    assert contents(tmp_path) == {"table.toml": b"next"}


def test_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "table", b"new")
    assert list(tmp_path.iterdir()) == [tmp_path / "table"]


def test_the_error_names_the_file_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="directory") as error:
        replace_file(tmp_path / "a", b"")
    assert str(error.value).endswith(f"{str(tmp_path / 'a')!r}")


def test_only_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    kept = {
        ".a.partial-1": b"somebody's",
        ".a.partial-20251126123000999": b"somebody's",
        ".b.partial-edgelm-0123456789abcdeg": b"somebody's",
        "c.partial-edgelm-0123456789abcdef": b"somebody's",
    }
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".d.partial-edgelm-0123456789abcdef").write_bytes(b"left by a killed process")
    link = tmp_path / ".e.partial-edgelm-0123456789abcdef"
    link.symlink_to(tmp_path / ".a.partial-1")
    folder = tmp_path / ".f.partial-edgelm-0123456789abcdef"
    folder.mkdir()
    living = tmp_path / ".g.partial-edgelm-0123456789abcdef"
    with living.open("wb") as file:
        assert try_lock(file.fileno())
        remove_abandoned_files(tmp_path)
        assert living.exists()
    remove_abandoned_files(tmp_path)
    assert not living.exists()
    link.unlink()
    folder.rmdir()
    assert contents(tmp_path) == kept


def test_a_writer_removes_only_what_killed_writers_of_its_own_file_left(tmp_path: Path) -> None:
    name = "ü" * 120  # so long that the hidden name holds only a part of it
    target = tmp_path / name
    own = hidden_sibling(target)
    kept = {
        ".table.partial-edgelm-0123456789abcdef": b"of another file",
        f"{own.name[:-1]}g": b"somebody's",
        own.name[1:]: b"somebody's",
    }
    for path, content in {own.name: b"left", **kept}.items():
        (tmp_path / path).write_bytes(content)
    living = hidden_sibling(target)
    with living.open("wb") as file:
        assert try_lock(file.fileno())
        replace_file(target, b"new")
        assert living.exists()
        living.unlink()
    assert contents(tmp_path) == {**kept, name: b"new"}


def test_a_folder_may_be_writable_but_not_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(folder: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.listdir", unreadable)
    replace_file(tmp_path / "table", b"new")
    assert (tmp_path / "table").read_bytes() == b"new"


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, target = tmp_path / "victim", tmp_path / "bundle.json"
    victim.write_text("precious")
    names = iter(["0" * 16, "1" * 16])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    (tmp_path / f".bundle.json.partial-edgelm-{'0' * 16}").symlink_to(victim)
    with pytest.raises(FileExistsError):
        replace_file(target, b"text of an attacker")
    assert victim.read_text() == "precious"
    target.symlink_to(victim)
    replace_file(target, b"new")
    assert (victim.read_text(), target.read_text()) == ("precious", "new")
    assert not target.is_symlink()


def test_permissions_are_the_requested_ones(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        replace_file(tmp_path / "secret", b"", mode=0o600)
        replace_file(tmp_path / "open", b"")
    finally:
        os.umask(mask)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o666


def test_a_hidden_file_that_another_process_renames_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = hidden_sibling(tmp_path / "table")
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([gone]))
    remove_abandoned_files(tmp_path)
