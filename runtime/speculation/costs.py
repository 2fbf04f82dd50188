"""What a run of several tokens costs, in runs of one: measured while generating.

All sequences of a model share it, since they share the engine. Medians of the last few runs count,
so that one that was disturbed does not. A size that looked expensive is not run, and nothing would
ever correct that: a single measurement is believed up to a limit, and what was measured is
forgotten after a while. Sizes are tried from the smallest on.
"""

import threading
from collections import deque
from statistics import median

from edgelm.speculation import SIZES

__all__ = ["SIZES", "StepCosts"]

_PER_TOKEN = 0.15  # what a further token is assumed to cost before it was measured
_MIN_MEASURED = 3
_DOUBT = 1.5  # of what is assumed: at most this much, while it was measured once
_FORGET = 128  # runs, of any size, after which the oldest measurement of each size is dropped
_SINGLES, _SEVERAL = 9, 5


class StepCosts:
    """Times of runs by their number of tokens, and of a draft model's runs, in seconds.

    Methods may be called from several threads: every generation has its caller's.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._single: deque[float] = deque(maxlen=_SINGLES)
        self._drafts: deque[float] = deque(maxlen=_SINGLES)
        self._ratios: dict[int, deque[float]] = {}
        self._known: dict[int, float] = {}  # what `ratio` found since the last measurement
        self._since = 0

    @property
    def known(self) -> bool:
        """Whether the time of a run of one token is known."""
        return len(self._single) >= _MIN_MEASURED

    def single(self, seconds: float) -> None:
        """Take note of a run of one token."""
        with self._lock:
            self._single.append(seconds)
            self._age()

    def several(self, size: int, seconds: float) -> None:
        """Take note of a run of `size` tokens."""
        with self._lock:
            ratios = self._ratios.setdefault(size, deque(maxlen=_SEVERAL))
            ratios.append(seconds / median(self._single))
            self._known.clear()
            self._age()

    def drafted(self, seconds: float) -> None:
        """Take note of a draft model's run of one token."""
        with self._lock:
            self._drafts.append(seconds)

    def ratio(self, size: int) -> float:
        """A run of `size` tokens in runs of one."""
        with self._lock:
            known = self._known.get(size)
            if known is None:
                known = self._known[size] = self._estimate(size)
            return known

    def _estimate(self, size: int) -> float:
        measured = self._ratios.get(size, ())
        if len(measured) >= _MIN_MEASURED:
            return median(measured)
        if len(measured) > 1:
            return min(measured)
        assumed = self._assumed(size)
        return min(measured[0], _DOUBT * assumed) if measured else assumed

    def _age(self) -> None:
        """Count a run; where most check drafts, sizes that are not used become forgotten, too."""
        self._since += 1
        if self._since == _FORGET:
            self._since = 0
            self._known.clear()
            for ratios in self._ratios.values():
                if ratios:
                    ratios.popleft()

    def usable(self) -> list[int]:
        """Sizes up to the first that was not measured: what larger ones cost shows in smaller."""
        with self._lock:
            new = next((one for one in SIZES if not self._ratios.get(one)), SIZES[-1])
        return [size for size in SIZES if size <= new]

    def measured(self) -> dict[int, float]:
        """Ratios of the sizes that were run."""
        with self._lock:
            sizes = sorted(size for size, ratios in self._ratios.items() if ratios)
            return {size: self.ratio(size) for size in sizes}

    def draft_ratio(self) -> float:
        """A draft model's run of one token in runs of one token of the model."""
        with self._lock:
            return median(self._drafts) / median(self._single) if self._drafts else 0.3

    def _assumed(self, size: int) -> float:
        """From the next smaller size that was measured."""
        known = (one for one, ratios in self._ratios.items() if ratios)
        smaller = max((one for one in known if one < size), default=1)
        if smaller == 1:
            return 1 + _PER_TOKEN * (size - 1)
        # Half the slope so far: where another kernel takes over, the second token costs most.
        at = self.ratio(smaller)
        slope = max(_PER_TOKEN, (at - 1) / (smaller - 1) / 2)
        return at + slope * (size - smaller)
