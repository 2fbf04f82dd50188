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
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from pickle import PicklingError
from typing import Any, NamedTuple

from edgelm.bench.evaluation.bundle.request_threads import RequestThreads
from edgelm.bench.evaluation.bundle.requests import Request
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


class WorkerSizes(NamedTuple):
    """How many processes have a copy of a bundle, and the threads and sequences of each."""

    processes: int
    threads: int
    sequences: int


def worker_sizes(manifest: Manifest, threads: int, sequences: int) -> WorkerSizes | None:
    """What threads and memory allow; None where requests should run in the caller's process.

    Args:
        manifest: of the bundle, which the caller has loaded, too.
        threads: that all processes share.
        sequences: of each process, at most; fewer where that leaves room for more processes.
    """
    if manifest.engine.name != "onnxruntime":
        return None
    free = int(_MEMORY_SHARE * available_bytes())

    def fitting(count: int) -> int:
        need = loaded_bytes(manifest, manifest.limits.context, sequences=count)
        return min(threads, free // need, _MAX_PROCESSES)

    processes = fitting(1)
    while sequences > 1 and fitting(sequences) < processes:
        sequences //= 2
    if processes < 1 or processes * sequences < 2:
        return None
    return WorkerSizes(processes, threads // processes, sequences)


class BundleWorkers:
    """Processes that each have a bundle loaded. They start with the first requests.

    Args:
        bundle: its folder.
        sizes: of the processes.
    """

    def __init__(self, bundle: Path, sizes: WorkerSizes) -> None:
        self._bundle = bundle
        self._sizes = sizes
        self._workers: list[_Worker] = []

    def wants(self, requests: Sequence[Request]) -> bool:
        """Whether requests are worth the start of the processes."""
        sizes = self._sizes
        several = sizes.processes > 1 or any(one.decodes for one in requests)
        return several and len(requests) >= _MIN_REQUESTS * sizes.processes

    def run(self, requests: Sequence[Request], progress: Progress = no_progress) -> list[Any]:
        """The results of requests, in their order; requests that begin alike share a process.

        Raises:
            EdgeLMError: the error of a request; requests after it may not have been run.
            DoesNotFit: a process was ended, as Linux does where memory is used up.
        """
        sizes = self._sizes
        if not self._workers:
            self._workers = [_Worker(self._bundle, sizes) for _ in range(sizes.processes)]
        # Prompts run one after the other anyway, and next to each other those that begin alike.
        at_once = sizes.sequences if any(one.decodes for one in requests) else 1
        shared = _Shared(requests, sizes.processes * _PARTS, progress)
        lanes = [
            threading.Thread(target=shared.drain, args=(worker, at_once), name="edgelm-evaluate")
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
        self._parts = deque(deque(order[at : at + size]) for at in range(0, len(order), size))
        self._requests = requests
        self._found: dict[int, Any] = {}
        self._progress = progress
        self._lock = threading.Lock()
        self.failure: BaseException | None = None

    def drain(self, worker: "_Worker", at_once: int) -> None:
        """Give requests to a worker, some at a time, until none is left, or one failed."""
        part = deque[int]()
        running = 0
        try:
            while True:
                while running < at_once and (part := self._filled(part)):
                    index = part.popleft()
                    worker.send(index, self._requests[index])
                    running += 1
                if not running:
                    return
                self._add(*worker.receive())
                running -= 1
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

    def _filled(self, part: "deque[int]") -> "deque[int]":
        """A part with requests: this one, or the next; an empty one if there is none."""
        with self._lock:
            if self.failure is not None:
                return deque()
            return part or (self._parts.popleft() if self._parts else deque())

    def _add(self, index: int, result: Any) -> None:
        with self._lock:
            self._found[index] = result
            self._progress(len(self._found), len(self._requests))


class _Worker:
    """A process with the bundle, and our end of the pipe to it."""

    def __init__(self, bundle: Path, sizes: WorkerSizes) -> None:
        # Not forked: the parent has threads, among them an engine's.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(theirs, str(bundle), sizes), daemon=True
        )
        self._process.start()
        theirs.close()

    def send(self, number: int, request: Request) -> None:
        """Give it a request, which it runs as soon as one of its threads is free.

        Raises:
            DoesNotFit: the process was ended.
        """
        try:
            self._pipe.send((number, request))
        except OSError:
            raise self._ended() from None

    def receive(self) -> tuple[int, Any]:
        """The number and the result of the next request that is done.

        Raises:
            EdgeLMError: the request's error.
            DoesNotFit: the process was ended.
        """
        try:
            number, ok, value = self._pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if not ok:
            raise value
        return number, value

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._pipe.close()
        self._process.terminate()
        self._process.join(_STOP_SECONDS)

    def _ended(self) -> DoesNotFit:
        self._process.join(_STOP_SECONDS)
        return DoesNotFit(
            "a process of the evaluation was ended (exit code "
            f"{self._process.exitcode}), probably because memory was used up; run it in one "
            "process: --threads 1 --sequences 1"
        )


def _serve(pipe: Connection, bundle: str, sizes: WorkerSizes) -> None:
    """Answer requests until the other end is closed."""
    # Ctrl-C reaches the whole group; the parent stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sending = threading.Lock()

    def done(number: int, ok: bool, value: Any) -> None:
        with sending, suppress(OSError):  # the other end was closed: nobody wants it
            try:
                pipe.send((number, ok, value))
            except (TypeError, AttributeError, PicklingError):
                pipe.send((number, False, RuntimeError(f"cannot be sent: {value!r}")))

    try:
        with load(
            bundle, threads=sizes.threads, sequences=sizes.sequences, check_hashes=False
        ) as model:
            threads = RequestThreads(model, done)
            while True:
                threads.add(*pipe.recv())
    except (EOFError, OSError):
        return
