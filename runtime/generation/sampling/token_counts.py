"""Which tokens a growing sequence holds, and how often, updated token by token."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class TokenCounts:
    """The distinct tokens of a sequence from index `start` on, and their counts.

    A step costs what was added, not the whole sequence.
    """

    def __init__(self, *, start: int = 0) -> None:
        self._read = start
        self._index: dict[int, int] = {}
        self._tokens = np.zeros(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.int64)

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """The distinct tokens, in the order of their first use."""
        return self._tokens[: len(self._index)]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """How often each of `tokens` was used."""
        return self._counts[: len(self._index)]

    def update(self, history: Sequence[int]) -> None:
        """Read what was added to the sequence since the last call."""
        for token in history[self._read :]:
            at = self._index.setdefault(token, len(self._index))
            if at == len(self._tokens):
                self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._tokens[at] = token
            self._counts[at] += 1
        self._read = max(self._read, len(history))
