"""File systems that are full, fill up meanwhile or cannot be written: real ones, in memory."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults.cases import CASES, Case, check_theirs, check_tidy, export, prepare
from tests.faults.kills import run_to_failure, run_whole
from tests.folders import contents

NAMED = {case.name: case for case in CASES}
_DISK_BYTES = 48 << 20  # an export wants 40 MB before it begins
_FULL = "No space left on device"
_READ_ONLY = "Read-only file system"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, *, but: int = 0) -> None:
    """Take what is free with a file of somebody else's, but for some bytes."""
    with (disk / "theirs").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            file.truncate(max(0, file.tell() - but))


def prepared(case: Case, disk: Path) -> tuple[Path, dict[str, bytes]]:
    folder = disk / "folder"
    prepare(case, folder)
    return folder, contents(folder)


def check_unchanged(folder: Path, before: dict[str, bytes], *, may_have: str = "-") -> None:
    """What was there is there; new is only what begins with `may_have`."""
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert [name for name in after.keys() - before.keys() if not name.startswith(may_have)] == []


def check_works_with_room(case: Case, folder: Path) -> None:
    (folder.parent / "theirs").unlink()
    run_whole(partial(case.run, folder), folder.parent / "log")
    case.check(folder)
    check_theirs(folder)
    check_tidy(case, folder)


def test_an_export_finds_a_full_disk_before_it_begins(disk: Path, tmp_path: Path) -> None:
    folder, before = prepared(NAMED["export"], disk)
    fill(disk)
    failure = run_to_failure(partial(NAMED["export"].run, folder), tmp_path / "log")
    assert "DoesNotFit: the bundle needs about 40" in failure
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("export", "calibrating"),
        ("export", "quantizing and writing"),
        ("export-work", "calibrating"),
        ("export-work", "quantizing and writing"),
        # Without --work an export then removes more than it still writes, and succeeds.
        ("export-work", "gate 8-bit"),
    ],
)
def test_a_disk_fills_up_during_an_export(
    disk: Path, tmp_path: Path, name: str, stage: str
) -> None:
    folder, before = prepared(NAMED[name], disk)

    def progress(line: str) -> None:
        if stage in line:
            fill(disk)

    run = partial(export, folder, work=name == "export-work", progress=progress)
    assert "DoesNotFit: the disk is full: cannot write" in run_to_failure(run, tmp_path / "log")
    check_unchanged(folder, before, may_have="work/")
    check_works_with_room(NAMED[name], folder)


@pytest.mark.parametrize(
    ("free", "message"),
    [(0, _FULL), (150_000, _FULL), (600_000, "no checkpoint yet. Free some space and start again")],
    ids=["at once", "at the student", "at a checkpoint"],
)
def test_a_disk_fills_up_during_a_compression(
    disk: Path, tmp_path: Path, free: int, message: str
) -> None:
    folder, before = prepared(NAMED["compress"], disk)
    fill(disk, but=free)
    assert message in run_to_failure(partial(NAMED["compress"].run, folder), tmp_path / "log")
    check_unchanged(folder, before, may_have="output.run/")
    check_works_with_room(NAMED["compress"], folder)


def test_a_disk_is_full_when_an_engine_is_written(disk: Path, tmp_path: Path) -> None:
    folder, before = prepared(NAMED["finalize"], disk)
    fill(disk)
    failure = run_to_failure(partial(NAMED["finalize"].run, folder), tmp_path / "log")
    assert "DoesNotFit: the disk is full" in failure
    check_unchanged(folder, before)
    check_works_with_room(NAMED["finalize"], folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("export", _READ_ONLY),
        ("export-work", _READ_ONLY),
        ("compress", _READ_ONLY),
        ("finalize", "BadInput: "),
    ],
)
def test_a_folder_that_cannot_be_written(
    disk: Path, tmp_path: Path, name: str, message: str
) -> None:
    folder, before = prepared(NAMED[name], disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    failure = run_to_failure(partial(NAMED[name].run, folder), tmp_path / "log")
    assert message in failure.splitlines()[-1]
    assert str(folder / "output") in failure or f"{folder}/.output" in failure
    assert contents(folder) == before


@pytest.mark.parametrize("kind", ["teacher cache", "moments"])
def test_a_mapped_file_on_a_full_disk(disk: Path, tmp_path: Path, kind: str) -> None:
    """An error and not SIGBUS, which ends a process without a word."""
    fill(disk, but=1 << 18)
    found = subprocess.run(
        [sys.executable, "-m", "tests.faults.mapped_files", kind, str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "No space left on device" in found.stdout
