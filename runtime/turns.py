"""One engine, several threads: each gets it for one run at a time, in the order of asking.

Python's own locks have no order: a thread that decodes in a loop would get such a lock again and
again while another waits.

Ctrl-C may come between any two lines of the main thread, even in a `finally`.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from edgelm.errors import Busy
from edgelm.runtime.engines.session import Cancelled

T = TypeVar("T")

_WAIT_SECONDS = 0.05  # between two questions of a waiting thread whether it is cancelled


class Turns:
    """A lock that is handed over in the order of asking."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._holder: _Ticket | None = None
        self._waiting: deque[_Ticket] = deque()

    @contextmanager
    def turn(self, cancelled: Callable[[], bool] | None = None) -> Iterator[None]:
        """Hold the engine; `cancelled` is called while another thread has it.

        Raises:
            Busy: this thread holds it already.
            Cancelled: `cancelled` returned true.
        """
        ticket = _Ticket()
        # The whole is in `try`: Ctrl-C may come between any two lines; see `forget`, too.
        try:
            self._enter(ticket, cancelled)
            ticket.inside = True
            yield
        finally:
            ticket.inside = False
            self._leave(ticket)

    def forget(self, thread: int) -> None:
        """A thread was interrupted between two lines: it neither holds the engine nor waits."""
        with self._mutex:
            for ticket in [one for one in self._waiting if one.thread == thread]:
                self._waiting.remove(ticket)
            if self._holder is not None and self._holder.thread == thread:
                self._holder = None
            self._hand_over()

    def held_here(self) -> bool:
        """Whether this thread holds the engine."""
        holder = self._holder
        return holder is not None and holder.inside and holder.thread == threading.get_ident()

    def _enter(self, ticket: "_Ticket", cancelled: Callable[[], bool] | None) -> None:
        if self.held_here():
            raise Busy(
                "this model is generating; it cannot be used from within its own `cancel` or "
                "logits processor"
            )
        with self._mutex:
            if self._holder is None and not self._waiting:
                self._holder = ticket
                return
            self._waiting.append(ticket)
            self._hand_over()
        while not ticket.ready.acquire(timeout=_WAIT_SECONDS):
            if self._holder is ticket:  # who handed it over was interrupted
                return
            if cancelled is not None and cancelled():
                raise Cancelled

    def _leave(self, ticket: "_Ticket") -> None:
        with self._mutex:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            if self._holder is ticket:
                self._holder = None
            self._hand_over()

    def _hand_over(self) -> None:
        """Give the engine to the next that waits, if nobody has it; the mutex is held."""
        if self._holder is None and self._waiting:
            self._holder = self._waiting[0]
            self._waiting.popleft()
            self._holder.ready.release()


class _Ticket:
    """A thread that holds the engine, or waits for it."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        # A lock: Event's own methods are in Python, where Ctrl-C could leave it locked.
        self.ready = threading.Lock()
        self.ready.acquire()
        self.inside = False


def with_locks(locks: Sequence[Any], run: Callable[[], T]) -> T:
    """Call a function while all of several RLocks are held; all threads give them in one order.

    Not by an ExitStack: its methods are in Python, where Ctrl-C could leave the locks held. `with`
    of a lock is native code.
    """
    if not locks:
        return run()
    with locks[0]:
        return with_locks(locks[1:], run)


class RunningThread:
    """The thread that runs a session, while its lock is held."""

    def __init__(self) -> None:
        self._thread: int | None = None

    def begin(self) -> None:
        """Note that the calling thread runs it."""
        self._thread = threading.get_ident()

    def end(self) -> None:
        """Note that no thread runs it."""
        self._thread = None

    def here(self) -> bool:
        """Whether the calling thread runs it."""
        return self._thread == threading.get_ident()

    def interrupted(self) -> None:
        """Note that Ctrl-C has ended what the calling thread ran."""
        if self.here():
            self.end()


def wait_on(changed: threading.Condition, seconds: float) -> None:
    """Wait, with the lock held before and afterwards.

    After Ctrl-C, too: within Condition's own `wait` it may come where the lock is released, and the
    caller's `with` would then fail.
    """
    try:
        changed.wait(seconds)
    except BaseException:
        if not changed._is_owned():  # type: ignore[attr-defined]
            changed.acquire()
        raise
