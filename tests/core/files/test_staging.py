"""A kill at any moment leaves the old folder or none; only folders of our own are replaced."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgelm.errors import BadInput
from edgelm.files.exchange import exchange
from edgelm.files.locks import try_lock
from edgelm.files.staging import (
    check_replaceable,
    check_separate,
    exclusive_lock,
    remove_abandoned_files,
    replace_file,
    staged_folder,
)
from tests.folders import contents

MARKER = "bundle.json"
_KILLED = """
import os, pathlib, signal, sys
from edgelm.files import staging
from edgelm.files.staging import staged_folder

staging.exchange = lambda one, other: False  # as on a system that cannot
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
with staged_folder(target, marker="bundle.json", listing=lambda _: {"bundle.json"}) as folder:
    (folder / "bundle.json").write_text("new")
    die(0)
"""

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


def write(target: Path, text: str) -> None:
    with staged_folder(target, marker=MARKER, listing=listing) as folder:
        (folder / MARKER).write_text(text)


def listing(_: Path) -> set[str]:
    """What an older output consists of."""
    return {MARKER, "inner/data"}


def killed_while_writing(target: Path, moment: int) -> None:
    """Run a process that is killed in the block (0) or right before its n-th rename."""
    command = [sys.executable, "-c", _KILLED, str(target), str(moment)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with staged_folder(target, marker=MARKER, listing=listing) as folder:
        (folder / MARKER).write_text("new")
        assert not target.exists()
        assert folder.parent.parent == target.parent  # the same file system: one rename
    assert contents(target) == {MARKER: b"new"}
    assert list(target.parent.iterdir()) == [target]


def test_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    write(target, "old")
    (target / "inner").mkdir()
    (target / "inner" / "data").write_text("x")
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
        with staged_folder(target, marker=MARKER, listing=listing) as folder:
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
    kept = [path for path in tmp_path.iterdir() if contents(path).get(f"old/{MARKER}") == b"old"]
    assert len(kept) == 1

    def fails() -> None:
        with staged_folder(target, marker=MARKER, listing=listing):
            assert contents(target) == {MARKER: b"old"}  # it is back before any work
            raise ValueError("again")

    with pytest.raises(ValueError, match="again"):
        fails()
    assert contents(target) == {MARKER: b"old"}
    assert list(tmp_path.iterdir()) == [target]


def test_staging_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    """A thread, or a process in another container with the same process id."""
    target = tmp_path / "bundle"
    with staged_folder(target, marker=MARKER, listing=listing) as one:
        (one / MARKER).write_text("first")
        write(target, "second")
        assert contents(one) == {MARKER: b"first"}
    assert contents(tmp_path) == {f"bundle/{MARKER}": b"first"}
    assert list(tmp_path.iterdir()) == [target]


def test_threads_that_write_to_one_place(tmp_path: Path) -> None:
    target, failed = tmp_path / "bundle", list[BaseException]()

    def writer(number: int) -> None:
        try:
            for _ in range(20):
                with staged_folder(target, marker=MARKER, listing=listing) as folder:
                    (folder / MARKER).write_text(str(number))
                    (folder / "inner").mkdir()
                    (folder / "inner" / "data").write_text(str(number))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=writer, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    found = contents(tmp_path)
    assert found[f"bundle/{MARKER}"] == found["bundle/inner/data"]
    assert list(tmp_path.iterdir()) == [target]


FOREIGN = [
    ".bundle.partial-notes",
    ".bundle2.partial-999999999",
    ".bundle.d",
    ".bundle.backup-2024",
    ".bundle.backup-20251126123000",
    ".bundle.v2.old-999999",
    ".bundle.old-999999",
    ".bundle.x-\u00b2",
    ".bundle.partial-edgelm-0123456789abcdef",
    ".bundle.partial-edgelm-0123456789abcdeg",
    ".bundle.v2.partial-edgelm-0123456789abcdef",
]


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("target", ["bundle", "bundle[1]", "bundle*"])
def test_hidden_folders_of_others_are_left_alone(tmp_path: Path, name: str, target: str) -> None:
    other = tmp_path / name.replace("bundle", target)
    other.mkdir()
    (other / "bundle.json").write_text("the only copy")
    before = contents(tmp_path)
    write(tmp_path / target, "new")
    write(tmp_path / target, "newer")
    assert contents(tmp_path) == before | {f"{target}/{MARKER}": b"newer"}


def test_staging_of_another_target_is_left_alone(tmp_path: Path) -> None:
    """Names of which one is the beginning of the other, and a copy under another name."""
    killed_while_writing(tmp_path / "bundle.v2", 0)
    [left] = tmp_path.iterdir()
    before = contents(tmp_path)
    write(tmp_path / "bundle", "new")
    assert contents(tmp_path) == before | {f"bundle/{MARKER}": b"new"}
    left.rename(tmp_path / left.name.replace(".bundle.v2.", ".bundle."))
    write(tmp_path / "bundle", "new")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["model[1]", "m*", "m" * 250, "\u00fc" * 120, "-", "a\nb"])
def test_left_overs_of_any_name_are_cleaned(tmp_path: Path, name: str) -> None:
    killed_while_writing(tmp_path / name, 0)
    assert len(list(tmp_path.iterdir())) == 1
    write(tmp_path / name, "new")
    assert list(tmp_path.iterdir()) == [tmp_path / name]


@pytest.mark.parametrize("left", [[], ["edgelm-staging"]])
def test_what_a_kill_left_at_its_very_beginning(tmp_path: Path, left: list[str]) -> None:
    begun = tmp_path / ".bundle.partial-edgelm-0123456789abcdef"
    begun.mkdir()
    for name in left:
        (begun / name).touch()
    write(tmp_path / "bundle", "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "bundle"]


def test_there_is_always_one(tmp_path: Path) -> None:
    """Whoever reads meanwhile finds the old one or the new one, where the system can exchange."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    if not exchange(one, other):
        pytest.skip("this system cannot exchange folders")
    target, stop, missed = tmp_path / "bundle", threading.Event(), list[int]()
    write(target, "0")

    def reader() -> None:
        while not stop.is_set():
            if not (target / MARKER).is_file():
                missed.append(1)

    thread = threading.Thread(target=reader)
    thread.start()
    for number in range(50):
        write(target, str(number))
    stop.set()
    thread.join()
    assert not missed


@pytest.mark.parametrize("exists", [False, True])
def test_a_link_stays_and_its_folder_is_replaced(tmp_path: Path, exists: bool) -> None:
    link, real = tmp_path / "link", tmp_path / "disk" / "real"
    real.parent.mkdir()
    if exists:
        write(real, "old")
    link.symlink_to(real)
    write(link, "new")
    write(link, "newer")
    assert link.is_symlink()
    assert contents(real) == {MARKER: b"newer"}
    assert sorted(tmp_path.rglob("*")) == sorted([link, real.parent, real, real / MARKER])


def test_links_in_a_circle_and_names_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises((BadInput, OSError)):
        write(tmp_path / "a", "new")
    with pytest.raises(BadInput, match="NUL"):
        write(tmp_path / "a\0b", "new")
    with pytest.raises(OSError, match="File name too long"):
        write(tmp_path / ("a" * 300), "new")


MINE = ["notes.txt", "inner/notes.txt", "hf/model.safetensors", "empty/", ".git/HEAD", "x.gguf"]


@pytest.mark.parametrize("mine", MINE)
def test_what_was_put_into_an_output_is_never_removed(tmp_path: Path, mine: str) -> None:
    target = tmp_path / "bundle"
    write(target, "old")
    path = target / mine
    path.parent.mkdir(exist_ok=True)
    if mine.endswith("/"):
        path.mkdir()
    else:
        path.write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(BadInput, match=r"holds '.*', which edgelm did not write there; move it"):
        write(target, "new")
    assert contents(tmp_path) == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_in_an_output_is_somebodys(tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "bundle", tmp_path / "elsewhere"
    write(target, "old")
    elsewhere.mkdir()
    (elsewhere / "data").write_text("x")
    (target / "inner").symlink_to(elsewhere)
    with pytest.raises(BadInput, match="holds 'inner'"):
        write(target, "new")
    assert contents(elsewhere) == {"data": b"x"}


@pytest.mark.parametrize("can_exchange", [False, True])
def test_what_comes_while_it_is_written_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    can_exchange: bool,
) -> None:
    if not can_exchange:
        monkeypatch.setattr("edgelm.files.staging.exchange", lambda *_: False)
    target = tmp_path / "bundle"
    write(target, "old")
    with staged_folder(target, marker=MARKER, listing=listing) as folder:
        (folder / MARKER).write_text("new")
        (target / "notes.txt").write_text("mine")
    assert contents(target) == {MARKER: b"new"}
    [kept] = set(tmp_path.iterdir()) - {target}
    assert contents(kept) == {MARKER: b"old", "notes.txt": b"mine"}
    assert "'notes.txt' came to" in caplog.text


def test_a_folder_that_became_somebodys_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "bundle"

    def fails() -> None:
        with staged_folder(target, marker=MARKER, listing=listing) as folder:
            (folder / MARKER).write_text("new")
            target.mkdir()
            (target / "thesis.txt").write_text("mine")

    with pytest.raises(BadInput, match="will not be replaced"):
        fails()
    assert contents(tmp_path) == {"bundle/thesis.txt": b"mine"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bundle", "lies in the output"),
        ("bundle/hf", "lies in the output"),
        ("link", "lies in the output"),
        (".", r"lies in the source"),
    ],
)
def test_inputs_are_apart_from_the_output(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "bundle" / "hf").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "bundle" / "hf")
    with pytest.raises(BadInput, match=message):
        check_separate(tmp_path / "bundle", {"source": tmp_path / name})
    check_separate(tmp_path / "bundle", {"source": tmp_path / "bundle2", "x": Path("some/hub-id")})
    (tmp_path / "bundle2").mkdir()
    check_separate(tmp_path / "bundle", {"source": tmp_path / "bundle2"})


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


def test_permissions_are_those_asked_for(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        replace_file(tmp_path / "secret", b"", mode=0o600)
        replace_file(tmp_path / "open", b"")
    finally:
        os.umask(mask)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o666


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
