"""Kills at random moments lose nothing, leave nothing and touch nothing of others."""

import random
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.faults.cases import CASES, Case, prepare
from tests.faults.kills import kill_running
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
        assert f": good; {KILLS} died" in line


class Moments(random.Random):
    """A first moment after any run has ended, then moments at which every run has just begun."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 3600.0

    def uniform(self, a: float, b: float) -> float:
        moment, self._next = self._next, 0.0
        return moment


def _mark(folder: Path) -> None:
    time.sleep(0.2)
    with (folder / "output").open("a") as file:
        file.write("x")


def _fail(folder: Path) -> None:
    raise ValueError("this command fails")


def _check(folder: Path) -> None:
    assert (folder / "output").read_text() == "x"


def test_a_run_that_ends_before_its_kill_is_undone(tmp_path: Path) -> None:
    case, place = Case("mark", lambda folder: None, _mark, _check), tmp_path / "place"
    prepare(case, place)
    ended, seconds = kill_running(case, place, 3600.0, Moments())
    assert ended == 1
    assert 0.2 <= seconds < 3600
    assert not (place / "output").exists()


def test_a_run_that_fails_before_its_kill_is_reported(tmp_path: Path) -> None:
    case, place = Case("fail", lambda folder: None, _fail, _check), tmp_path / "place"
    prepare(case, place)
    with pytest.raises(AssertionError, match="this command fails"):
        kill_running(case, place, 3600.0, Moments())
