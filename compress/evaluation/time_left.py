"""How long a task still takes, by the pace of its items so far."""

import time
from collections.abc import Callable

from edgelm.compress.durations import duration


class TimeLeft:
    """Counts from when it is made.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()

    def text(self, done: int, of: int) -> str:
        """`, 3 min left`; nothing where no item is done, or none is left.

        Args:
            done: items.
            of: all items.
        """
        if not 0 < done < of:
            return ""
        seconds = (self._clock() - self._started) / done * (of - done)
        return f", {duration(seconds)} left"
