"""Hashes from an earlier load: only of files that cannot have changed since."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from edgelm.bundle import files, known_hashes
from edgelm.bundle.known_hashes import KnownHashes
from edgelm.bundle.paths import FileState, file_state
from edgelm.files.hashing import stream_sha256

SHA256 = "0" * 64


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read to the end."""
    names: list[str] = []

    def noted(file: Any) -> str:
        names.append(Path(file.name).name if isinstance(file.name, str) else "data")
        return stream_sha256(file)

    monkeypatch.setattr(files, "stream_sha256", noted)
    return names


def digest(path: Path, known: KnownHashes | None) -> str:
    with path.open("rb") as file:
        return files._digest(file, known)


def test_a_file_is_read_once(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_hashes, "_SETTLED_NS", -(10**10))
    path, store = tmp_path / "data", tmp_path / "cache" / "hashes.json"
    path.write_bytes(b"first")
    known = KnownHashes(store)
    first = digest(path, known)
    known.save()
    assert digest(path, KnownHashes(store)) == first
    assert len(hashed) == 1
    assert digest(path, None) == first
    assert len(hashed) == 2


def test_a_changed_file_is_read_again_whatever_its_times(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_hashes, "_SETTLED_NS", -(10**10))
    path = tmp_path / "data"
    path.write_bytes(b"first")
    known = KnownHashes(tmp_path / "hashes.json")
    first, before = digest(path, known), path.stat()
    path.write_bytes(b"other")  # as long as before
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert digest(path, known) != first
    assert len(hashed) == 2


def test_a_file_that_has_just_changed_is_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"first")
    state = file_state(path)
    assert state is not None
    known = KnownHashes(tmp_path / "hashes.json")
    known.add(state, SHA256)
    assert known.find(state) is None


OLD = FileState(1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"1:2:3:4:5": 7}', b'{"1:2:3:4:5": "x"}']
)
def test_a_damaged_store_is_empty(tmp_path: Path, content: bytes) -> None:
    store = tmp_path / "hashes.json"
    store.write_bytes(content)
    store.chmod(0o600)
    assert KnownHashes(store).find(OLD) is None


def test_a_store_that_others_can_write_to_is_not_believed(tmp_path: Path) -> None:
    store = tmp_path / "hashes.json"
    store.write_text(json.dumps({"1:2:3:4:5": SHA256}))
    store.chmod(0o600)
    assert KnownHashes(store).find(OLD) == SHA256
    store.chmod(0o666)
    assert KnownHashes(store).find(OLD) is None


def test_the_store_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_hashes, "_MAX_FILES", 2)
    known = KnownHashes(tmp_path / "hashes.json")
    for size in range(3):
        known.add(OLD._replace(size=size), SHA256)
    known.save()
    again = KnownHashes(tmp_path / "hashes.json")
    assert [again.find(OLD._replace(size=size)) for size in range(3)] == [None, SHA256, SHA256]


def test_a_store_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    known = KnownHashes(tmp_path / "file" / "hashes.json")
    known.add(OLD, SHA256)
    known.save()
    assert known.find(OLD) == SHA256
