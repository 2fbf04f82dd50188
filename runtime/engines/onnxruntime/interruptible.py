"""A call into native code that can be stopped: by Ctrl-C, or by its caller.

Python delivers a signal only between two of its own steps, so a call that stays in native code for
seconds would not notice Ctrl-C. The call runs on a thread of its own, while this one waits where a
signal reaches it, and checks whether the result is still wanted.
"""

import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue

_POLL_SECONDS = 0.05


def run_interruptible(
    call: Callable[[], None], stop: Callable[[], None], cancelled: Callable[[], bool]
) -> bool:
    """Run `call`; return whether it was cancelled. Returns or raises only once `call` has ended.

    Args:
        call: what to run; it gives the GIL back while it runs.
        stop: makes `call` end early; safe to call at any time, from any thread.
        cancelled: called every 50 ms, on this thread.

    Raises:
        KeyboardInterrupt: Ctrl-C, after `call` was stopped.
    """
    if sys.is_finalizing():  # no other thread runs any more, and no signal arrives
        call()
        return False
    run = _Run(call)
    stopped = False
    try:
        # An interrupt may come while the thread is being started, so this belongs to the rest.
        _take_worker().calls.put(run)
        while not run.ended.wait(_POLL_SECONDS):
            if not stopped and cancelled():
                stopped = True
                stop()
    except BaseException:
        stop()
        run.abandon()
        raise
    # A traceback refers to the run: if the run referred to it, the model's arrays would stay in
    # memory until the garbage collector looks for cycles.
    failure, run.failure = run.failure, None
    if failure is not None and not stopped:
        try:
            raise failure
        finally:
            del failure
    return stopped


class _Run:
    """The call on its thread: not begun, running or ended."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.ended = threading.Event()
        self.failure: BaseException | None = None
        self._call = call
        self._lock = threading.Lock()
        self._begun = self._abandoned = False

    def body(self) -> None:
        with self._lock:
            if self._abandoned:
                return
            self._begun = True
        try:
            self._call()
        except BaseException as error:
            self.failure = error

    def abandon(self) -> None:
        """Wait for the end: native code writes to our memory until then, whoever presses Ctrl-C."""
        with self._lock:
            self._abandoned = True
        while self._begun and not self.ended.is_set():
            try:
                self.ended.wait()
            except KeyboardInterrupt:
                continue
        self.failure = None


class _Worker:
    """A thread that makes one call after the other.

    It is kept: glibc gives a new thread memory of its own to allocate from, and what is free in
    there stays the process's. With a thread for each run, several such parts grew to the size
    of a run's activations.
    """

    def __init__(self) -> None:
        self.calls: SimpleQueue[_Run] = SimpleQueue()
        threading.Thread(target=self._body, name="edgelm-run", daemon=True).start()

    def _body(self) -> None:
        while True:
            run = self.calls.get()
            run.body()
            _idle.append(self)  # first: who waits for this run may start the next one
            run.ended.set()
            del run  # not held while it waits: it refers to the arrays of its model


_idle: list[_Worker] = []


def _take_worker() -> _Worker:
    try:
        return _idle.pop()
    except IndexError:  # also where another thread has just taken the last one
        return _Worker()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_idle.clear)  # a child has none of the threads
