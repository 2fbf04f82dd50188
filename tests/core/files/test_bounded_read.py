"""Small files of a bundle: whatever lies under the name, a plain file or an error that says why."""

import os
from pathlib import Path

import pytest

from edgelm.bundle.manifest_file import read_manifest
from edgelm.checkpoint.student import STUDENT_RECORD, read_student_record
from edgelm.errors import BadBundle, BadCheckpoint
from edgelm.files.bounded_read import read_bounded


def test_a_plain_file_and_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    (tmp_path / "b").symlink_to("a")
    assert read_bounded(tmp_path / "a", at_most=4) == b"1234"
    assert read_bounded(tmp_path / "b", at_most=4) == b"1234"
    with pytest.raises(BadBundle, match="larger than 3 bytes"):
        read_bounded(tmp_path / "a", at_most=3)


def test_an_absent_file_is_told_from_a_link_to_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "a", at_most=4)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "folder" / "a", at_most=4)
    (tmp_path / "a").symlink_to("nowhere")
    with pytest.raises(BadBundle, match="a is a link to a missing file; copy or export"):
        read_bounded(tmp_path / "a", at_most=4)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to itself", "link to nowhere"])
def test_what_is_not_a_file_is_not_a_manifest(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bundle.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path.name if kind == "link to itself" else "nowhere")
    with pytest.raises(BadBundle, match=r"bundle\.json"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_removed_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelm.bundle.manifest_file._exists", lambda path: True)
    with pytest.raises(BadBundle, match="is not a bundle"):
        read_manifest(tmp_path)


def test_a_record_of_a_student_that_leads_nowhere(tmp_path: Path) -> None:
    assert read_student_record(tmp_path) is None
    (tmp_path / STUDENT_RECORD).symlink_to("nowhere")
    with pytest.raises(BadCheckpoint, match="a link to a missing file"):
        read_student_record(tmp_path)
