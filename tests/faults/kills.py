"""Kill a case's process again and again, at random moments, and look at what is left."""

import faulthandler
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.faults.cases import Case, check_theirs, check_tidy, copy_of, prepare
from tests.folders import contents
from tests.progress_lock import own_progress_lock

_GROUP = 5  # kills before a start that is left alone
_TIMEOUT = 120.0  # seconds of one run
# Of a run's measured time: every other kill comes late, when the output is replaced.
_LATE, _LATEST = 0.85, 1.05
_ATTEMPTS = 20  # runs in a row that end before their moment


@dataclass(slots=True)
class Tally:
    """What came of the kills.

    killed: processes that were running when they were killed.
    ended: runs that had ended before their moment; each was undone, and the kill tried again.
    old: times that the output was after a kill what it had been at first, or still absent.
    new: times that it was a whole new one.
    """

    killed: int = 0
    ended: int = 0
    old: int = 0
    new: int = 0


def kill_often(case: Case, folder: Path, kills: int, seed: int) -> Tally:
    """Kill a case; every few kills it is started again and must end well.

    Every kill hits a process that is running.

    Raises:
        AssertionError: an output is damaged, something is left, or something of others is gone.
    """
    prepare(case, folder / "before")
    moments, tally = random.Random(f"{seed} {case.name}"), Tally()
    done = copy_of(folder / "before", folder / "undisturbed")
    with alongside(case, done, folder / "log-beside"):
        begun = time.monotonic()
        run_whole(partial(case.run, done), folder / "log")
        undisturbed = time.monotonic() - begun
    for first in range(0, kills, _GROUP):
        place, seconds = copy_of(folder / "before", folder / f"round-{first}"), undisturbed
        old = contents(place / "output") if (place / "output").exists() else None
        for number in range(first, min(first + _GROUP, kills)):
            earliest = _LATE if number % 2 else 0.0
            ended, seconds = kill_running(case, place, seconds, moments, earliest)
            tally.ended += ended
            tally.killed += 1
            check_theirs(place)
            if is_the_old(place, old):
                tally.old += 1
            else:
                case.check(place)
                tally.new += 1
        run_whole(partial(case.run, place), folder / "log")
        case.check(place)
        check_theirs(place)
        check_tidy(case, place)
    return tally


def kill_running(
    case: Case, place: Path, seconds: float, moments: random.Random, earliest: float = 0.0
) -> tuple[int, float]:
    """Kill a case in a prepared folder, at a moment at which it runs.

    A run that has ended by its moment must have ended well. It is undone, and the next moment is
    chosen within the time that it took: what earlier runs left can make a run shorter.

    Args:
        seconds: about what a run takes.
        earliest: the first moment, as a share of that time.

    Returns:
        How many runs had ended, and about what a run takes now.
    """
    before = copy_of(place, place.with_name(f"{place.name}-before"))
    log = place.with_name("log-killed")
    for ended in range(_ATTEMPTS):
        with alongside(case, place, place.with_name("log-beside")):
            moment = moments.uniform(earliest * seconds, _LATEST * seconds)
            took = kill_once(partial(case.run, place), moment, log)
        if took is None:
            shutil.rmtree(before)
            return ended, seconds
        case.check(place)
        check_theirs(place)
        seconds = took
        shutil.rmtree(place)
        copy_of(before, place)
    raise AssertionError(f"{_ATTEMPTS} runs in a row ended before their moment")


@contextmanager
def alongside(case: Case, place: Path, log: Path) -> Iterator[None]:
    """The case's other command runs from before the block until it succeeds, if it has one."""
    if case.beside is None:
        yield
        return
    child = start(partial(case.beside, place), log)
    try:
        yield
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    wait_for_success(child, log)


def is_the_old(place: Path, old: dict[str, bytes] | None) -> bool:
    """Whether the old output is there as it was; none is old where there was none."""
    output = place / "output"
    return contents(output) == old if output.exists() else old is None


def kill_once(run: Callable[[], object], after: float, log: Path) -> float | None:
    """Run in a process that is killed after some seconds.

    Returns:
        None if it was running then; else the seconds after which it had ended, which must be well.
    """
    child, begun = start(run, log), time.monotonic()
    ended, status = 0, 0
    while not ended and time.monotonic() - begun < after:
        time.sleep(0.002)
        ended, status = os.waitpid(child, os.WNOHANG)
    took = time.monotonic() - begun
    if not ended:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            return None
    check_success(status, log)
    return took


def run_whole(run: Callable[[], object], log: Path) -> None:
    """Run in a process that is left alone; it must end well."""
    wait_for_success(start(run, log), log)


def run_to_failure(run: Callable[[], object], log: Path) -> str:
    """Run in a process that is left alone and must end with an exception; what it wrote."""
    status = wait_for(start(run, log), log)
    said = log.read_text(errors="replace")
    assert status == 1 << 8, f"ended with {status}, not with an exception:\n{said[-3000:]}"
    return said


def wait_for_success(child: int, log: Path) -> None:
    """Wait until a process ends, which must be well."""
    check_success(wait_for(child, log), log)


def check_success(status: int, log: Path) -> None:
    """Raise AssertionError, with what a process wrote, if it did not end well."""
    assert status == 0, f"ended with {status}:\n{log.read_text(errors='replace')[-3000:]}"


def wait_for(child: int, log: Path) -> int:
    """The status with which a process ends, within the time that a run may take."""
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = log.read_text(errors="replace")
    raise AssertionError(f"did not end within {_TIMEOUT:.0f} s:\n{said[-3000:]}")


def start(run: Callable[[], object], log: Path) -> int:
    """Fork: what is imported is imported already."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        own_progress_lock()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115 - pytest has its own
        faulthandler.dump_traceback_later(0.9 * _TIMEOUT, file=sys.stderr)
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
