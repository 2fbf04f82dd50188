"""The harness itself: every way to fail is seen, named and can be replayed."""

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from edgelm.errors import BadInput
from tests.fuzz import limits
from tests.fuzz.kind import Case, Kind, Opened
from tests.fuzz.outcome import Outcome, Wrong
from tests.fuzz.runner import Runner


def _refuse(folder: Path, reference: Callable[[], None]) -> Opened:
    raise BadInput("no such thing; expected another")


def _fail(folder: Path, reference: Callable[[], None]) -> Opened:
    raise KeyError("x")


def _die(folder: Path, reference: Callable[[], None]) -> Opened:
    os.abort()


def _spin(folder: Path, reference: Callable[[], None]) -> Opened:
    while True:
        pass


def _wait(folder: Path, reference: Callable[[], None]) -> Opened:
    time.sleep(600)
    return "equal"


def _grow(folder: Path, reference: Callable[[], None]) -> Opened:
    # Mapped: an allocator may hand out memory that this process has had all the time.
    with mmap.mmap(-1, 20_000_000) as memory:
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1
    return "equal"


def _ask_for_too_much(folder: Path, reference: Callable[[], None]) -> Opened:
    bytearray(1 << 33)  # more than an allocator can have free from earlier tests
    return "equal"


def _differ(folder: Path, reference: Callable[[], None]) -> Opened:
    raise Wrong("another value")


class _Unbounded(BadInput):
    def __str__(self) -> str:
        return "x" * 100_000


def _flood(folder: Path, reference: Callable[[], None]) -> Opened:
    raise _Unbounded


def _reference_fails(folder: Path, reference: Callable[[], None]) -> Opened:
    reference()
    raise KeyError("of the independent reader")


WAYS = {
    _refuse: "refused",
    _fail: "exception",
    _die: "crash",
    _spin: "hang",
    _wait: "hang",
    _grow: "memory",
    _ask_for_too_much: "memory",
    _differ: "wrong",
    _flood: "wrong",
    _reference_fails: "other",
}


class Ways(Kind):
    """Case n fails in the n-th way."""

    name = "ways"

    def prepare(self, folder: Path) -> None:
        """Nothing is needed."""

    def make(self, rng: Random, folder: Path) -> Case:
        (folder / "file").write_text(str(rng.random()))
        return Case("a mutation")

    def check(self, folder: Path, case: Case, reference: Callable[[], None]) -> Opened:
        number = int(os.environ["CASE"])
        return list(WAYS)[number](folder, reference)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(WAYS)), ids=[way.__name__ for way in WAYS])
def test_every_failure_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setenv("CASE", str(number))
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    monkeypatch.setattr(limits, "GROWTH_BYTES", 10_000_000)
    runner = Runner(Ways(), 5, tmp_path, save=tmp_path / "saved")
    (outcome,) = runner.run([7])
    verdict = list(WAYS.values())[number]
    assert outcome.verdict == verdict
    assert outcome.note == "a mutation"
    assert outcome.replay == "python -m tests.fuzz --kind ways --seed 5 --case 7"
    assert (tmp_path / "saved" / "ways-5-7" / "file").is_file() == outcome.failed


@pytest.mark.slow
def test_a_case_is_made_of_its_seed_and_number_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASE", str(list(WAYS).index(_differ)))

    def run(name: str, cases: list[int]) -> dict[int, str]:
        saved = tmp_path / name
        outcomes: list[Outcome] = list(Runner(Ways(), 5, tmp_path, jobs=2, save=saved).run(cases))
        files = {one.case: saved / f"ways-5-{one.case}" / "file" for one in outcomes}
        return {case: file.read_text() for case, file in files.items()}

    several = run("several", [1, 2, 3])
    assert run("alone", [3]) == {3: several[3]}
    assert len(set(several.values())) == 3
