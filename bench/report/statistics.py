"""Medians and percentiles of raw samples."""

import math
from collections.abc import Sequence

import msgspec

_MIN_SAMPLES = 4  # of fewer nobody knows which one is off
_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_MAX_SIGMAS = 3.0
_MIN_SHARE = 0.1  # of the median; closer ones are no surprise on a shared machine


class Percentiles(msgspec.Struct, frozen=True):
    """The median, the 10th and 90th percentiles, and every sample."""

    median: float
    p10: float
    p90: float
    samples: tuple[float, ...]

    @classmethod
    def from_samples(cls, samples: Sequence[float]) -> "Percentiles":
        """Statistics of at least one sample."""
        return cls(
            percentile(samples, 50),
            percentile(samples, 10),
            percentile(samples, 90),
            tuple(samples),
        )


def outliers(samples: Sequence[float]) -> list[float]:
    """Samples more than three standard deviations and a tenth away from the median.

    The deviation is estimated from the median absolute deviation, which outliers do not move
    (Leys et al. 2013); of fewer than four samples there are none.

    >>> outliers([100.0, 101.0, 99.0, 100.0, 60.0])
    [60.0]
    """
    if len(samples) < _MIN_SAMPLES:
        return []
    median = percentile(samples, 50)
    deviation = percentile([abs(sample - median) for sample in samples], 50)
    limit = max(_MAX_SIGMAS * _MAD_TO_SIGMA * deviation, _MIN_SHARE * abs(median))
    return [sample for sample in samples if abs(sample - median) > limit]


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
