"""Requests to a bundle, shared out to several processes.

A step of a small model on a CPU divides badly among threads: each of its matrices is a small
product, after which all threads wait for the slowest. Whole requests divide well. So each process
has a part of the threads and a copy of the bundle, and takes requests until none is left. A
request's result does not depend on which process ran it, nor on its threads.
"""

import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from edgelm.bench.evaluation.bundle_requests import Request, Start
from edgelm.bundle import Manifest
from edgelm.compress.evaluation.backend import Progress, no_progress
from edgelm.devices.detection.memory import available_bytes
from edgelm.devices.planner.memory.memory_need import loaded_bytes
from edgelm.errors import DoesNotFit
from edgelm.runtime.loading import load

_MEMORY_SHARE = 0.5  # of what is free
_MAX_PROCESSES = 16
_PARTS = 8  # of the requests, per process: the last parts end at about the same time
_MIN_REQUESTS = 4  # per process; fewer are not worth its start
_STOP_SECONDS = 5


def process_count(manifest: Manifest, threads: int) -> int:
    """How many copies of a bundle may run beside each other; 1: none beside the caller's.

    Args:
        manifest: of the bundle.
        threads: that all of them share.
    """
    if manifest.engine.name != "onnxruntime":
        return 1
    need = loaded_bytes(manifest, manifest.limits.context)
    # The caller has one loaded already.
    fitting = int(_MEMORY_SHARE * available_bytes()) // need
    return max(1, min(threads, fitting, _MAX_PROCESSES))


class BundleWorkers:
    """Processes that each have a bundle loaded. They start with the first requests.

    Args:
        bundle: its folder.
        processes: how many.
        threads: of each.
    """

    def __init__(self, bundle: Path, processes: int, threads: int) -> None:
        self._bundle = bundle
        self._processes = processes
        self._threads = threads
        self._workers: list[_Worker] = []

    def wants(self, count: int) -> bool:
        """Whether as many requests are worth the start of the processes."""
        return self._processes > 1 and count >= _MIN_REQUESTS * self._processes

    def run(self, requests: Sequence[Request], progress: Progress = no_progress) -> list[Any]:
        """The results of requests, in their order; requests that begin alike share a process.

        Raises:
            EdgeLMError: the error of a request; requests after it may not have been run.
            DoesNotFit: a process was ended, as Linux does where memory is used up.
        """
        if not self._workers:
            self._workers = [_Worker(self._bundle, self._threads) for _ in range(self._processes)]
        shared = _Shared(requests, self._processes * _PARTS, progress)
        lanes = [
            threading.Thread(target=shared.drain, args=(worker,), name="edgelm-evaluate")
            for worker in self._workers
        ]
        for lane in lanes:
            lane.start()
        try:
            for lane in lanes:
                lane.join()
        except BaseException:
            shared.stop()
            self.close()
            raise
        if shared.failure is not None:
            self.close()
            raise shared.failure
        return shared.results()

    def close(self) -> None:
        """End the processes; requests start new ones."""
        for worker in self._workers:
            worker.stop()
        self._workers = []


class _Shared:
    """Requests that several threads take from, and their results."""

    def __init__(self, requests: Sequence[Request], parts: int, progress: Progress) -> None:
        order = sorted(range(len(requests)), key=lambda index: requests[index].order)
        size = max(1, len(order) // parts)
        self._parts = deque(order[at : at + size] for at in range(0, len(order), size))
        self._requests = requests
        self._found: dict[int, Any] = {}
        self._progress = progress
        self._lock = threading.Lock()
        self.failure: BaseException | None = None

    def drain(self, worker: "_Worker") -> None:
        """Give requests to a worker until none is left, or one failed."""
        try:
            while (part := self._next()) is not None:
                for index in part:
                    self._add(index, worker.result(self._requests[index]))
        except BaseException as error:
            with self._lock:
                self.failure = self.failure or error

    def stop(self) -> None:
        """Give out no more parts."""
        with self._lock:
            self._parts.clear()

    def results(self) -> list[Any]:
        """All results, in the order of the requests."""
        return [self._found[index] for index in range(len(self._requests))]

    def _next(self) -> list[int] | None:
        with self._lock:
            return self._parts.popleft() if self._parts and self.failure is None else None

    def _add(self, index: int, result: Any) -> None:
        with self._lock:
            self._found[index] = result
            self._progress(len(self._found), len(self._requests))


class _Worker:
    """A process with the bundle, and our end of the pipe to it."""

    def __init__(self, bundle: Path, threads: int) -> None:
        # Not forked: the parent has threads, among them an engine's.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(theirs, str(bundle), threads), daemon=True
        )
        self._process.start()
        theirs.close()

    def result(self, request: Request) -> Any:
        """A request's result."""
        try:
            self._pipe.send(request)
            ok, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(_STOP_SECONDS)
            raise DoesNotFit(
                "a process of the evaluation was ended (exit code "
                f"{self._process.exitcode}), probably because memory was used up; run it in one "
                "process: --threads 1"
            ) from None
        if not ok:
            raise value
        return value

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._pipe.close()
        self._process.terminate()
        self._process.join(_STOP_SECONDS)


def _serve(pipe: Connection, bundle: str, threads: int) -> None:
    """Answer requests until the other end is closed."""
    # Ctrl-C reaches the whole group; the parent stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with load(bundle, threads=threads, check_hashes=False) as model:
            start = Start(model)
            while True:
                request: Request = pipe.recv()
                try:
                    reply = True, request.run(start)
                except Exception as error:
                    reply = False, error
                pipe.send(reply)
    except (EOFError, OSError):
        return
