"""Models in a process that is forked (multiprocessing's "fork", servers that load and then fork).

A fork copies the memory of a process, but of its threads only the one that forked. An engine
waits for its own threads, so that it can neither run nor be released in the child, and a lock that
another thread held stays locked. A model is therefore closed in the child, without an engine's
being released.
"""

import ctypes
import os
import weakref
from functools import cache
from typing import Protocol


class Forked(Protocol):
    """What is closed in a child."""

    def after_fork(self) -> None:
        """Called in the child, whose only thread this is."""


_watched: weakref.WeakSet[Forked] = weakref.WeakSet()


def watch_forks(model: Forked) -> None:
    """Have `after_fork` called in the children of this process."""
    _register()
    _watched.add(model)


@cache
def _register() -> None:
    """Once in a process; its children have it, too."""
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(after_in_child=_after_fork)


def keep_forever(value: object) -> None:
    """Never release an object, nor what it refers to, even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _after_fork() -> None:
    for model in list(_watched):
        model.after_fork()
