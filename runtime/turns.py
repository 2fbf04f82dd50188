"""One engine, several threads: each gets it for one run at a time, in the order of asking.

Python's own locks have no order: a thread that decodes in a loop would get such a lock again and
again while another waits.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgelm.errors import Busy
from edgelm.runtime.engines.session import Cancelled

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
        # The whole is in `try`: Ctrl-C may come between any two lines.
        try:
            self._enter(ticket, cancelled)
            ticket.inside = True
            yield
        finally:
            ticket.inside = False
            self._leave(ticket)

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
            if self._holder is None or self._holder.is_stale():
                self._holder = ticket
                return
            ticket.ready = threading.Event()
            self._waiting.append(ticket)
        while not ticket.ready.wait(_WAIT_SECONDS):
            if cancelled is not None and cancelled():
                raise Cancelled

    def _leave(self, ticket: "_Ticket") -> None:
        with self._mutex:
            if self._holder is not ticket:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
                return
            self._holder = self._waiting.popleft() if self._waiting else None
            if self._holder is not None and self._holder.ready is not None:
                self._holder.ready.set()


class _Ticket:
    """A thread that holds the engine, or waits for it."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.ready: threading.Event | None = None
        self.inside = False

    def is_stale(self) -> bool:
        """Whether this thread held it and was interrupted while it gave it back."""
        return not self.inside and self.thread == threading.get_ident()
