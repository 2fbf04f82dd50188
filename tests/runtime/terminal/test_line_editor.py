"""Messages as they are typed: several lines, quotes, history."""

import builtins
import sys
from pathlib import Path

import pytest

from edgelm.runtime.generation.interrupts import Interrupts
from edgelm.runtime.terminal.line_editor import LineEditor


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Lines that a person will type."""
    lines: list[str] = []

    def read(_: str = "") -> str:
        if not lines:
            raise EOFError
        return lines.pop(0)

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(builtins, "input", read)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    return lines


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        (["a \\", "b\\", "c", "d"], ["a \nb\nc", "d"]),
        (['"""', "a", "", 'b"""', "c"], ["a\n\nb", "c"]),
        (['"""one line"""'], ["one line"]),
        (['"""a', "  b", '"""'], ["a\n  b"]),
    ],
)
def test_messages(typed: list[str], lines: list[str], expected: list[str]) -> None:
    typed += lines
    assert list(LineEditor(Interrupts()).messages()) == expected


def test_history_is_kept_and_only_its_owner_may_read_it(typed: list[str], tmp_path: Path) -> None:
    readline = pytest.importorskip("readline")
    editor = LineEditor(Interrupts())
    readline.clear_history()
    readline.add_history("Why is the sky blue?")
    editor.save()
    file = tmp_path / "edgelm" / "edge-run-history"
    assert file.stat().st_mode & 0o077 == 0
    assert "Why is the sky blue?" in file.read_text()
    readline.clear_history()
    LineEditor(Interrupts())
    assert readline.get_history_item(1) == "Why is the sky blue?"


def test_without_history_nothing_is_written(typed: list[str], tmp_path: Path) -> None:
    LineEditor(Interrupts(), history=False).save()
    assert not (tmp_path / "edgelm").exists()
