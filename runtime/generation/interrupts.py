"""Ctrl-C as a person at a terminal means it: stop the answer, keep the program.

The first press only sets a flag, which a generation checks as its `cancel`; a second one before the
next prompt raises KeyboardInterrupt, so that nothing can hold the program.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupts:
    """Takes Ctrl-C over while it is entered, in the main thread; elsewhere it changes nothing."""

    def __init__(self) -> None:
        self._pressed = self._raises = False
        self._previous: Any = None

    def pressed(self) -> bool:
        """Whether Ctrl-C was pressed since the last prompt."""
        return self._pressed

    @contextmanager
    def raised(self) -> Iterator[None]:
        """A prompt: forget earlier presses; the next one raises KeyboardInterrupt at once."""
        self._pressed, self._raises = False, True
        try:
            yield
        finally:
            self._raises = False

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, _: int, __: FrameType | None) -> None:
        if self._raises or self._pressed:
            raise KeyboardInterrupt
        self._pressed = True
