"""When a draft model that was not faster is tried again.

A trial costs more than its runs: the draft model first reads the whole text. What one generation
found is therefore known to the next, and trials of a slower draft become ever rarer.
"""

import threading

_INTERVAL, _MAX_INTERVAL = 128, 2048  # tokens


class DraftTrials:
    """Tokens until the next trial, over all generations of a model, from any of their threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits, self._interval = 0, _INTERVAL

    @property
    def due(self) -> bool:
        """Whether the draft model should be tried."""
        return self._waits == 0

    def passed(self) -> None:
        """Count a token."""
        with self._lock:
            self._waits = max(0, self._waits - 1)

    def paid(self) -> None:
        """The draft model is used because it is faster; the next trial is soon after it is not."""
        with self._lock:
            self._waits = self._interval = _INTERVAL

    def begin(self) -> bool:
        """Begin a trial if one is due; return whether it was, and no other generation began it.

        The next one comes later, and the one after that later still.
        """
        with self._lock:
            if self._waits:
                return False
            self._waits = self._interval
            self._interval = min(2 * self._interval, _MAX_INTERVAL)
            return True
