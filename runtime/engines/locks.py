"""Locks of sessions: several at a time, and the thread that runs in one.

Ctrl-C may come between any two lines of the main thread, even in a `finally`.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


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
