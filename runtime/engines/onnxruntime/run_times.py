"""Whether runs over several sequences are faster than as many runs over one, by measured times.

On a GPU that depends on ONNX Runtime's version: some have kernels for 4-bit weights and one row
only, and for more rows they dequantize the whole matrix first, or read it again for each row.
"""

from collections import defaultdict, deque
from statistics import median

_TIMES = 9
_ENOUGH = 5  # runs, so that one that was disturbed does not decide
_AGAIN = 64  # of the groups that are not worth a run of their own, every so often one is measured


class RunTimes:
    """The times of the last runs, by how many sequences they were of."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_TIMES))
        self._split: dict[int, int] = defaultdict(int)

    def add(self, size: int, seconds: float) -> None:
        """Take note of a run."""
        self._seconds[size].append(seconds)

    def pays(self, size: int) -> bool:
        """Whether a group of this size should be one run; until that is measured, yes."""
        single, shared = self._seconds[1], self._seconds[size]
        if size == 1 or len(shared) < _ENOUGH:
            return True
        if len(single) < _ENOUGH:
            return False
        if median(shared) <= size * median(single):
            return True
        self._split[size] += 1
        return self._split[size] % _AGAIN == 0
