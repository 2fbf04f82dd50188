"""Hidden states of a sequence's last tokens, which wait for a draft head to read them."""

import numpy as np
import numpy.typing as npt

from edgelm.spec.draft_head import hidden_rows

Rows = npt.NDArray[np.float32]
_FIRST = 64  # rows that there is memory for at first; up to twice as many as are kept follow


class HiddenRows:
    """Rows [tokens, hidden_size] of consecutive tokens, `start` to `end`, of which the oldest go.

    Args:
        width: hidden_size.

    Attributes:
        start: the first token whose row is here.
        end: the token behind the last one.
        unchanged: tokens, from the first one of the sequence on, that no run has replaced since
            the last `read_until`.
    """

    def __init__(self, width: int) -> None:
        self.start = self.end = self.unchanged = 0
        self._most = hidden_rows(width)
        self._rows: Rows = np.empty((0, width), np.float32)
        self._first = 0  # the token of the buffer's first row

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self._rows.nbytes

    def keep_last(self, count: int) -> None:
        """Keep at most this many from now on."""
        self._most = min(self._most, count)

    def put(self, at: int, rows: Rows) -> None:
        """Take note of rows of tokens `at` and on, which follow or replace those that are here."""
        self.unchanged = min(self.unchanged, at)
        end, rows = at + len(rows), rows[-self._most :]
        at = end - len(rows)
        if not self.start <= at <= self.end:
            self.start = self._first = at
        self.start = max(self.start, end - self._most)
        self._make_room(at, end)
        self._rows[at - self._first : end - self._first] = rows
        self.end = end

    def rows(self, start: int, end: int) -> Rows:
        """Those of tokens `start` to `end`, all of which are here; valid until the next `put`."""
        assert self.start <= start <= end <= self.end
        return self._rows[start - self._first : end - self._first]

    def read_until(self, end: int) -> None:
        """The head has read all rows before `end`: they go, but for the last one."""
        self.start = max(self.start, min(end, self.end) - 1)
        self.unchanged = end

    def clear(self) -> None:
        """The sequence's tokens are others."""
        self.start = self.end = self.unchanged = self._first = 0

    def _make_room(self, at: int, end: int) -> None:
        """Move rows before `at` that are kept to the front of the buffer where it is full."""
        if end - self._first <= len(self._rows):
            return
        kept = self._rows[self.start - self._first : at - self._first]
        size = min(2 * self._most, max(_FIRST, 2 * (end - self.start)))
        moved = self._rows
        if size > len(moved):
            moved = np.empty((size, self._rows.shape[1]), np.float32)
        moved[: len(kept)] = kept.copy() if moved is self._rows else kept
        self._rows, self._first = moved, self.start
