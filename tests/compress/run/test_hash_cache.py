"""Input files are hashed once, by the main process."""

import os
import threading
from pathlib import Path

import pytest

import edgelm.compress.run.hash_cache as module
from edgelm.compress.run.hash_cache import HASHES, HashCache
from edgelm.compress.run.run_folder import RunFolder
from edgelm.files.hashing import file_sha256


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read to be hashed."""
    seen: list[Path] = []

    def hashed(path: Path) -> str:
        seen.append(path)
        return file_sha256(path)

    monkeypatch.setattr(module, "file_sha256", hashed)
    return seen


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, read: list[Path]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("one")
    first = HashCache(tmp_path / "run").sha256(data)
    assert HashCache(tmp_path / "run").sha256(data) == first == file_sha256(data)
    assert read == [data]
    data.write_text("two")
    os.utime(data, ns=(1, 1))
    assert HashCache(tmp_path / "run").sha256(data) == file_sha256(data) != first
    assert len(read) == 2


def test_a_file_of_the_same_size_and_time_but_another_one(tmp_path: Path) -> None:
    data, other = tmp_path / "data.jsonl", tmp_path / "other"
    for path, text in ((data, "one"), (other, "two")):
        path.write_text(text)
        os.utime(path, ns=(5, 5))
    cache = HashCache(tmp_path / "run")
    first = cache.sha256(data)
    other.replace(data)
    assert cache.sha256(data) != first


def test_a_file_written_to_whose_times_were_set_back(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    found = []
    for text in ("one", "two"):
        data.write_text(text)
        os.utime(data, ns=(5, 5))
        found.append(HashCache(tmp_path / "run").sha256(data))
    assert found[1] == file_sha256(data) != found[0]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"x": 5}', b"\xff" * 9])
def test_a_damaged_cache_is_written_again(tmp_path: Path, read: list[Path], content: bytes) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("one")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / HASHES).write_bytes(content)
    for _ in range(2):
        assert HashCache(tmp_path / "run").sha256(data) == file_sha256(data)
    assert read == [data]


def test_others_wait_for_the_main_process(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("one")
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    found: list[str] = []
    monkeypatch.setattr(module, "is_main_process", lambda: False)
    follower = threading.Thread(
        target=lambda: found.append(HashCache(tmp_path / "run").sha256(data))
    )
    follower.start()
    follower.join(0.1)
    assert follower.is_alive()
    assert not read
    monkeypatch.setattr(module, "is_main_process", lambda: True)
    HashCache(tmp_path / "run").sha256(data)
    follower.join(10)
    assert found == [file_sha256(data)]
    assert read == [data], "one process read it"


def test_a_follower_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("one")
    monkeypatch.setattr(module, "is_main_process", lambda: False)
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.0)
    assert HashCache(tmp_path / "run").sha256(data) == file_sha256(data)


def test_a_run_that_only_hashed_can_start_again(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("one")
    RunFolder(tmp_path / "run", print).hashes.sha256(data)
    RunFolder(tmp_path / "run", print)
