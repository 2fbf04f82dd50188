"""The child: runs cases one after the other under limits, and reports each."""

import faulthandler
import os
import shutil
import signal
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from tests.fuzz import limits
from tests.fuzz.kind import Case, Kind, Opened
from tests.fuzz.outcome import Outcome, Verdict, Wrong, shortened, verdict_of

OPENING, REFERENCE = "opening", "reference"


def serve(kind: Kind, seed: int, scratch: Path, requests: Connection) -> None:
    """Run the cases whose numbers arrive, until None does.

    Sends the name of every phase as it begins, with the mutation in words; then the outcome.
    """
    log = (scratch / "stderr.log").open("w")
    os.dup2(log.fileno(), 2)
    os.dup2(log.fileno(), 1)
    sys.stdin = open(os.devnull)  # noqa: SIM115 - a library that asks a question gets no answer
    warnings.simplefilter("ignore")
    faulthandler.enable(log)
    faulthandler.register(signal.SIGUSR1, log, all_threads=False)
    while (number := requests.recv()) is not None:
        requests.send(_run(kind, seed, number, scratch / "case", requests))


def _run(kind: Kind, seed: int, number: int, folder: Path, reports: Connection) -> Outcome:
    limits.lift_address_space()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    case = kind.make(Random(f"{kind.name}/{seed}/{number}"), folder)
    started, before = time.perf_counter(), limits.reset_peak()
    limits.limit_address_space()
    reports.send((OPENING, case.note))
    opening = _Opening(reports, case.note)
    verdict, place, detail = _opened(kind, folder, case, opening)
    peak = (opening.peak or limits.peak_bytes()) - before
    if peak > limits.GROWTH_BYTES:
        verdict, detail = "memory", f"{peak / 1e6:.0f} MB more than before, then {verdict}"
    seconds = (opening.ended or time.perf_counter()) - started
    return Outcome(
        kind.name, seed, number, verdict, place, detail, case.note, round(seconds, 4), peak
    )


class _Opening:
    """Notes when opening ended and the independent reader began."""

    def __init__(self, reports: Connection, note: str) -> None:
        self._reports, self._note = reports, note
        self.peak: int | None = None
        self.ended: float | None = None

    def __call__(self) -> None:
        self.peak, self.ended = limits.peak_bytes(), time.perf_counter()
        self._reports.send((REFERENCE, self._note))


def _opened(kind: Kind, folder: Path, case: Case, opening: _Opening) -> tuple[Verdict, str, str]:
    try:
        verdict: Opened = kind.check(folder, case, opening)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # pyo3's PanicException is not an Exception
        if opening.ended and not isinstance(error, Wrong):
            return "other", "", f"the reference: {shortened(repr(error))}"
        return verdict_of(error)
    return verdict, "", ""
