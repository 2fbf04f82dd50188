"""Kill a case's process again and again, at random moments, and look at what is left."""

import faulthandler
import os
import random
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


@dataclass(slots=True)
class Tally:
    """What came of the kills.

    killed: processes that were still running at their moment; the others had ended by then.
    old: times that the output was afterwards what it had been at first, or still absent.
    new: times that it was a whole new one.
    """

    killed: int = 0
    old: int = 0
    new: int = 0


def kill_often(case: Case, folder: Path, kills: int, seed: int) -> Tally:
    """Kill a case; every few kills it is started again and must end well.

    Raises:
        AssertionError: an output is damaged, something is left, or something of others is gone.
    """
    prepare(case, folder / "before")
    moments, tally = random.Random(f"{seed} {case.name}"), Tally()
    begun = time.monotonic()
    done = copy_of(folder / "before", folder / "undisturbed")
    with alongside(case, done, folder / "log-beside"):
        run_whole(partial(case.run, done), folder / "log")
    seconds = time.monotonic() - begun
    for first in range(0, kills, _GROUP):
        place = copy_of(folder / "before", folder / f"round-{first}")
        old = contents(place / "output") if (place / "output").exists() else None
        for _ in range(min(_GROUP, kills - first)):
            with alongside(case, place, folder / "log-beside"):
                moment = moments.uniform(0, 1.05 * seconds)
                tally.killed += kill_once(partial(case.run, place), moment)
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


def kill_once(run: Callable[[], object], after: float) -> bool:
    """Run in a process that is killed after some seconds; False if it has ended by then."""
    child = start(run, Path(os.devnull))
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


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
    status = wait_for(child, log)
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
