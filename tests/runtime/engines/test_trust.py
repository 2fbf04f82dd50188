"""Which engines this machine trusts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.errors import BadInput
from edgelm.runtime.engines.trust import is_trusted, trust

PROCESSES, EACH = 8, 25
CHILD = """\
import sys
from edgelm.runtime.engines.trust import trust
for number in range(int(sys.argv[2])):
    trust(f"{sys.argv[1]}{number:02x}" * 16)
"""


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def store(state: Path) -> Path:
    return state / "edgelm" / "trusted-engines.txt"


def test_nothing_at_first() -> None:
    assert not is_trusted("a" * 64)


def test_what_was_trusted_and_nothing_else(store: Path) -> None:
    trust("a" * 64)
    trust("b" * 64)
    trust("a" * 64)
    assert is_trusted("a" * 64)
    assert is_trusted("b" * 64)
    assert not is_trusted("c" * 64)
    assert not is_trusted("a" * 63)
    assert not is_trusted("")
    assert len(store.read_text().splitlines()) == 2


@pytest.mark.parametrize("text", ["", "a" * 63, "A" * 64, "a" * 64 + "\n" + "b" * 64, "*"])
def test_only_a_hash_can_be_trusted(text: str, store: Path) -> None:
    with pytest.raises(BadInput, match="is not a SHA-256"):
        trust(text)
    assert not store.exists()


@pytest.mark.slow
def test_processes_at_once_lose_nothing(store: Path) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, f"{number:02x}", str(EACH)])
        for number in range(PROCESSES)
    ]
    assert [child.wait(60) for child in children] == [0] * PROCESSES
    lines = store.read_text().splitlines()
    assert len(lines) == len(set(lines)) == PROCESSES * EACH
    assert {len(line) for line in lines} == {64}


def test_only_its_owner_may_write_it(store: Path) -> None:
    before = os.umask(0)
    try:
        trust("a" * 64)
        assert store.stat().st_mode & 0o777 == 0o600
        store.chmod(0o666)
        trust("b" * 64)
    finally:
        os.umask(before)
    assert store.stat().st_mode & 0o777 == 0o600


def test_half_a_line_of_a_killed_process(store: Path) -> None:
    store.parent.mkdir()
    store.write_text("a" * 64 + "\n" + "b" * 30)
    trust("c" * 64)
    assert is_trusted("a" * 64)
    assert is_trusted("c" * 64)
    assert not is_trusted("b" * 30 + "c" * 34)


def _folder(path: Path) -> None:
    path.mkdir(parents=True)


def _no_text(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe" + "a".encode("utf-16-le") * 64)


def _pipe(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)


def _file_as_folder(path: Path) -> None:
    path.parent.write_text("not a folder")


def _unreadable(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")


@pytest.mark.parametrize("make", [_folder, _no_text, _pipe, _file_as_folder, _unreadable])
def test_a_store_that_cannot_be_used(make: object, store: Path) -> None:
    assert callable(make)
    make(store)
    message = r"the list of trusted engines, .*trusted-engines\.txt, cannot be used: "
    with pytest.raises(BadInput, match=message):
        is_trusted("a" * 64)
    with pytest.raises(BadInput, match=message):
        trust("a" * 64)
