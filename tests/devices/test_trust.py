"""Which engines this machine trusts."""

from pathlib import Path

import pytest

from edgelm.devices.trust import is_trusted, trust


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def test_nothing_at_first() -> None:
    assert not is_trusted("a" * 64)


def test_what_was_trusted_and_nothing_else(state: Path) -> None:
    trust("a" * 64)
    trust("b" * 64)
    trust("a" * 64)
    assert is_trusted("a" * 64)
    assert is_trusted("b" * 64)
    assert not is_trusted("c" * 64)
    assert not is_trusted("a" * 63)
    assert len((state / "edgelm" / "trusted-engines.txt").read_text().splitlines()) == 2
