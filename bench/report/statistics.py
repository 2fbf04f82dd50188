"""Medians and percentiles of raw samples."""

import math
from collections.abc import Sequence

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """A median with its neighbourhood, and every sample."""

    median: float
    p10: float
    p90: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """Statistics of at least one sample."""
        return cls(
            percentile(samples, 50),
            percentile(samples, 10),
            percentile(samples, 90),
            tuple(samples),
        )


def percentile(samples: Sequence[float], share: float) -> float:
    """Percentile by linear interpolation between the two nearest ranks.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50)
    2.5
    """
    ordered = sorted(samples)
    position = (len(ordered) - 1) * share / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
