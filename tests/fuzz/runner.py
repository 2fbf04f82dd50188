"""The parent: hands cases to children, ends those that hang, replaces those that died."""

import gc
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import mkdtemp

from tests.fuzz import limits
from tests.fuzz.kind import Kind
from tests.fuzz.outcome import Outcome, Verdict, place_in_dump
from tests.fuzz.worker import REFERENCE, serve

_CASES_PER_CHILD = 200  # what one case leaves behind must not count for many
_POLL_SECONDS = 0.25


class Runner:
    """Runs cases of one kind in `jobs` children at a time.

    Args:
        kind: prepared.
        seed: of all cases.
        scratch: a folder of this run's own.
        jobs: children at a time.
        save: where the files of failing cases are copied to.
    """

    def __init__(
        self, kind: Kind, seed: int, scratch: Path, *, jobs: int = 1, save: Path | None = None
    ) -> None:
        self.kind, self.seed, self.scratch = kind, seed, scratch
        self.jobs, self.save = jobs, save

    def run(self, cases: Iterable[int]) -> Iterator[Outcome]:
        """Yield the outcome of every case, in the order in which they end."""
        waiting = iter(cases)
        gc.collect()
        gc.freeze()  # else every child's first collection copies the parent's pages
        children: list[_Child] = []
        try:
            children = self._started(waiting)
            while children:
                ready = wait([child.reports for child in children], timeout=_POLL_SECONDS)
                for child in list(children):
                    outcome = child.poll(child.reports in ready)
                    if outcome is None:
                        continue
                    yield self._kept(outcome, child)
                    children.remove(child)
                    following = child.next(waiting)
                    if following:
                        children.append(following)
        finally:
            for child in children:
                child.stop()
            gc.unfreeze()

    def _started(self, waiting: Iterator[int]) -> "list[_Child]":
        started = (_Child(self).give(waiting) for _ in range(self.jobs))
        return [child for child in started if child]

    def _kept(self, outcome: Outcome, child: "_Child") -> Outcome:
        if self.save and outcome.failed:
            target = self.save / f"{outcome.kind}-{outcome.seed}-{outcome.case}"
            shutil.rmtree(target, ignore_errors=True)
            _copy_plain(child.scratch / "case", target)
            (target / "OUTCOME.txt").write_text(f"{outcome.replay}\n{outcome}\n")
        return outcome


class _Child:
    """One process and the case that it has now."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.scratch = Path(mkdtemp(dir=runner.scratch))
        self.reports, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        arguments = (runner.kind, runner.seed, self.scratch, theirs, self.reports)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.number, self.done, self.phase, self.note = -1, 0, "", ""
        self.since, self.used = 0.0, 0.0

    def give(self, waiting: Iterator[int]) -> "_Child | None":
        """Send the next case; None, and the process ends, where there is none."""
        number = next(waiting, None)
        if number is None:
            self.stop()
            return None
        self.number, self.done = number, self.done + 1
        self._enter("making")
        self.reports.send(number)
        return self

    def next(self, waiting: Iterator[int]) -> "_Child | None":
        """Go on with the next case, in a new process where this one ended or is worn."""
        if self.process.is_alive() and self.done < _CASES_PER_CHILD:
            return self.give(waiting)
        self.stop()
        return _Child(self.runner).give(waiting)

    def poll(self, ready: bool) -> Outcome | None:
        """The outcome of the case, if it ended."""
        try:
            while ready and self.reports.poll():
                report = self.reports.recv()
                if isinstance(report, Outcome):
                    return report
                phase, self.note = report
                self._enter(phase)
        except (EOFError, ConnectionError):
            return self._died()
        return self._hung() if self._overdue() else None

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.reports.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _enter(self, phase: str) -> None:
        self.phase, self.since = phase, time.monotonic()
        self.used = limits.processor_seconds(self.process.pid or 0)

    def _overdue(self) -> bool:
        wall = time.monotonic() - self.since
        if wall < limits.SECONDS:
            return False
        pid = self.process.pid or 0
        used = limits.processor_seconds(pid) - self.used
        return used > limits.SECONDS or limits.is_asleep(pid) or wall > limits.MOST_SECONDS

    def _hung(self) -> Outcome:
        pid = self.process.pid
        assert pid is not None
        os.kill(pid, signal.SIGUSR1)  # faulthandler writes where it is
        time.sleep(0.2)
        self.process.kill()
        self.process.join()
        return self._ended("hang", f"more than {limits.SECONDS:g} s")

    def _died(self) -> Outcome:
        self.process.join()
        code = self.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return self._ended("crash", how)

    def _ended(self, verdict: Verdict, detail: str) -> Outcome:
        """The outcome of a case whose process is gone."""
        runner = self.runner
        common = (runner.kind.name, runner.seed, self.number)
        if self.phase == REFERENCE:
            return Outcome(*common, "other", detail=f"the reference: {detail}", note=self.note)
        log = (self.scratch / "stderr.log").read_text(errors="replace")
        if self.phase == "making":
            raise RuntimeError(f"{common}: making the case failed: {log[-2000:]}")
        return Outcome(*common, verdict, place_in_dump(log), detail, self.note)


def _serve(kind: Kind, seed: int, scratch: Path, requests: Connection, parents: Connection) -> None:
    parents.close()  # else this process would wait for itself when the parent is gone
    serve(kind, seed, scratch, requests)


def _copy_plain(source: Path, target: Path) -> None:
    """Copy files and links; pipes and devices cannot be."""

    def special(folder: str, names: list[str]) -> list[str]:
        paths = ((name, Path(folder, name)) for name in names)
        return [n for n, p in paths if not (p.is_symlink() or p.is_file() or p.is_dir())]

    shutil.copytree(source, target, symlinks=True, ignore=special)
