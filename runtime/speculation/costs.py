"""What a run of several tokens costs, in runs of one: measured while generating.

All sequences of a model share it, since they share the engine. Medians of the last few runs: one
that was disturbed does not count.
"""

from collections import deque
from statistics import median

# Sizes of a run that checks drafted tokens. Few, so that each is bound once and soon measured.
SIZES = (2, 3, 4, 6, 8, 12, 16)
_PER_TOKEN = 0.15  # what a further token is assumed to cost before it was measured
_MIN_MEASURED = 3  # below it the quickest counts: a first run may be slow for other reasons
_SINGLES, _SEVERAL = 9, 5


class StepCosts:
    """Times of runs by their number of tokens, and of a draft model's runs, in seconds."""

    def __init__(self) -> None:
        self._single: deque[float] = deque(maxlen=_SINGLES)
        self._drafts: deque[float] = deque(maxlen=_SINGLES)
        self._ratios: dict[int, deque[float]] = {}

    @property
    def known(self) -> bool:
        """Whether the time of a run of one token is known."""
        return len(self._single) >= _MIN_MEASURED

    def single(self, seconds: float) -> None:
        """Take note of a run of one token."""
        self._single.append(seconds)

    def several(self, size: int, seconds: float) -> None:
        """Take note of a run of `size` tokens."""
        ratios = self._ratios.setdefault(size, deque(maxlen=_SEVERAL))
        ratios.append(seconds / median(self._single))

    def drafted(self, seconds: float) -> None:
        """Take note of a draft model's run of one token."""
        self._drafts.append(seconds)

    def ratio(self, size: int) -> float:
        """A run of `size` tokens in runs of one."""
        measured = self._ratios.get(size)
        if not measured:
            return self._assumed(size)
        return min(measured) if len(measured) < _MIN_MEASURED else median(measured)

    def draft_ratio(self) -> float:
        """A draft model's run of one token in runs of one token of the model."""
        return median(self._drafts) / median(self._single) if self._drafts else 0.3

    def _assumed(self, size: int) -> float:
        """From the next smaller size that was measured."""
        smaller = max((one for one in self._ratios if one < size), default=1)
        at = self.ratio(smaller) if smaller > 1 else 1.0
        return at + _PER_TOKEN * (size - smaller)
