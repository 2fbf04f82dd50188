"""Kills at random moments lose nothing, leave nothing and touch nothing of others."""

from importlib.util import find_spec
from pathlib import Path

from tests.faults.cases import CASES
from tests.forks import run_forked

KILLS = 20  # of each kind here; 100 by `python -m tests.faults --kills 100`


def test_kills(tmp_path: Path) -> None:
    """In a process of its own, which forks: pytest's may have threads.

    One for all cases, since what an export imports takes it several seconds.
    """
    without = set() if find_spec("tensorrt_rtx") else {"export-rtx"}
    names = [case.name for case in CASES if case.name not in without]
    outcomes = tmp_path / "outcomes.txt"
    options = ("--kills", str(KILLS), "-o", str(outcomes))
    code = run_forked("tests.faults.__main__", *names, *options)
    text = outcomes.read_text() if outcomes.exists() else "it wrote no outcome"
    assert code == 0, text
    lines = text.splitlines()
    assert len(lines) == len(names), text
    for name, line in zip(names, lines, strict=True):
        assert line.startswith(f"{name}: {KILLS} kills")
        assert ": good; " in line
