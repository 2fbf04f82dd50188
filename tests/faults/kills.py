"""Kill a case's process again and again, at random moments, and look at what is left."""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.faults.cases import Case, check_theirs, check_tidy, copy_of, prepare
from tests.folders import contents

_GROUP = 5  # kills before a start that is left alone
_TIMEOUT = 120.0  # seconds of one run


def kill_often(case: Case, folder: Path, kills: int, seed: int) -> None:
    """Kill a case so many times; every few kills it is started again and must end well.

    Raises:
        AssertionError: an output is damaged, something is left, or something of others is gone.
    """
    prepare(case, folder / "before")
    moments = random.Random(f"{seed} {case.name}")
    begun = time.monotonic()
    done = copy_of(folder / "before", folder / "undisturbed")
    run_whole(partial(case.run, done), folder / "log")
    seconds = time.monotonic() - begun
    for first in range(0, kills, _GROUP):
        place = copy_of(folder / "before", folder / f"round-{first}")
        old = contents(place / "output") if (place / "output").exists() else None
        for _ in range(min(_GROUP, kills - first)):
            kill_once(partial(case.run, place), moments.uniform(0, 1.05 * seconds))
            check_theirs(place)
            if old is None or not is_the_old(place, old):
                case.check(place)
        run_whole(partial(case.run, place), folder / "log")
        case.check(place)
        check_theirs(place)
        check_tidy(case, place)


def is_the_old(place: Path, old: dict[str, bytes]) -> bool:
    """Whether the old output is there as it was."""
    return (place / "output").exists() and contents(place / "output") == old


def kill_once(run: Callable[[], object], after: float) -> None:
    """Run in a process that is killed after some seconds, unless it has ended by then."""
    child = start(run, Path(os.devnull))
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def run_whole(run: Callable[[], object], log: Path) -> None:
    """Run in a process that is left alone; it must end well."""
    child = start(run, log)
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, f"ended with {status}:\n{log.read_text(errors='replace')[-3000:]}"
            return
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"did not end within {_TIMEOUT:.0f} s")


def start(run: Callable[[], object], log: Path) -> int:
    """Fork: what is imported is imported already."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
