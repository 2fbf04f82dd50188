"""A folder is written atomically: a kill at any moment leaves the old one or none."""

import threading
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from edgelm.errors import BadInput
from edgelm.files.exchange import exchange
from edgelm.files.staging import staged_folder
from tests.core.files.staged_writer import MARKER, killed_while_writing, listing, write
from tests.folders import contents


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


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can fill")
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"'/proc/edgelm-output'$"), write_to_proc():
        pass


def write_to_proc() -> AbstractContextManager[Path]:
    return staged_folder(Path("/proc/edgelm-output"), marker=MARKER, listing=listing)
