"""Kills at random moments lose nothing, leave nothing and touch nothing of others."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.faults.cases import CASES
from tests.forks import run_forked

KILLS = 20  # of each kind here; 100 by `python -m tests.faults --kills 100`


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_kills(name: str, tmp_path: Path) -> None:
    """In a process of its own, which forks: pytest's may have threads."""
    if name == "export-rtx" and not find_spec("tensorrt_rtx"):
        pytest.skip("tensorrt-rtx is not installed")
    outcome = tmp_path / "outcome.txt"
    options = ("--kills", str(KILLS), "-o", str(outcome))
    code = run_forked("tests.faults.__main__", name, *options)
    text = outcome.read_text() if outcome.exists() else "it wrote no outcome"
    assert code == 0, text
    assert text.startswith(f"{name}: {KILLS} kills")
    assert ": good; " in text
