"""Axes: from values to a share of the plot's width or height, linear or logarithmic."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_MARGIN = 0.04  # of the range, so that a mark at the edge is whole
_TOO_LARGE = 1e300  # differences of larger values overflow


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis counts, with its unit, and how it is scaled."""

    label: str
    log: bool = False
    from_zero: bool = False

    def shows(self, value: float) -> bool:
        """Whether a value has a place: it is finite and, on a logarithmic axis, above zero."""
        return math.isfinite(value) and abs(value) < _TOO_LARGE and (value > 0 or not self.log)


@dataclass(frozen=True, slots=True)
class Range:
    """The ends of an axis; logarithms of them where it is logarithmic."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], axis: Axis) -> "Range":
        """The range of the values with a margin; every value must be one that the axis shows."""
        placed = [math.log10(value) if axis.log else value for value in values] or [0.0]
        if axis.from_zero:
            placed.append(0.0)
        low, high = min(placed), max(placed)
        if high <= low or high - low <= 1e-12 * max(abs(low), abs(high)):
            half = 0.5 if axis.log else (abs(low) or 1.0) / 2
            low, high = low - half, high + half
        margin = _MARGIN * (high - low)
        return cls(0.0 if axis.from_zero and low >= 0 else low - margin, high + margin, axis.log)

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high end."""
        placed = math.log10(value) if self.log else value
        return (placed - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values inside the range, about six of them."""
        if not self.log:
            return _linear_ticks(self.low, self.high)
        ticks = _log_ticks(self.low, self.high)
        return ticks if len(ticks) > 1 else _linear_ticks(10**self.low, 10**self.high)


def short_number(value: float) -> str:
    """A number in a few signs: 1.5k, 0.02, 1e-05.

    >>> short_number(1500), short_number(0.02)
    ('1.5k', '0.02')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= rough), 10 * power)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; between few of them their multiples by two and five as well."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    factors = (1, 2, 5) if high - low < 2 else (1,)
    every = max(1, len(exponents) // 6)
    ticks = [factor * 10.0**power for power in exponents[::every] for factor in factors]
    return [tick for tick in ticks if low <= math.log10(tick) <= high]
