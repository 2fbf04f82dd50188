"""The readings of one sensor over time, and their statistics."""

import statistics
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import msgspec

from edgelm.devices.sensors.reader import Kind, Part, Reader
from edgelm.devices.sensors.throttle import throttling

_MIN_READINGS = 5  # with fewer, values outside the window would dominate


class Sensor(msgspec.Struct, frozen=True):
    """Summary of a sensor's readings. Only power sensors have `mean` and `energy_j`.

    `part` is the measured part. Power of the `board` includes all other parts.
    """

    name: str
    kind: Kind
    unit: str
    part: Part
    samples: int
    min: float
    median: float
    max: float
    last: float
    mean: float | None = None
    energy_j: float | None = None


class Series:
    """Readings of one sensor with their times in seconds, in order."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.times = array("d")
        self.values = array("d")

    def add(self, time: float, value: float) -> None:
        """Append a reading."""
        self.times.append(time)
        self.values.append(value)

    def sensor(self, *, whole: bool = True) -> Sensor:
        """Statistics of at least one reading; no energy unless the whole run was read."""
        reader, values = self.reader, self.values
        seconds = self.times[-1] - self.times[0]
        energy = _area(self.times, self.values) if reader.kind == "power" and seconds else None
        return Sensor(
            name=reader.name,
            kind=reader.kind,
            unit=reader.unit,
            part=reader.part,
            samples=len(values),
            min=min(values),
            median=statistics.median(values),
            max=max(values),
            last=values[-1],
            mean=None if energy is None else energy / seconds,
            energy_j=energy if whole else None,
        )

    def energy(self, start: float, end: float) -> float | None:
        """Joules between two times; None unless enough readings cover them."""
        first, last = bisect_left(self.times, start), bisect_right(self.times, end)
        covered = self.times and self.times[0] <= start <= end <= self.times[-1]
        if not covered or last - first < _MIN_READINGS:
            return None
        times = array("d", [start, *self.times[first:last], end])
        inside = self.values[first:last]
        return _area(times, array("d", [self._at(start), *inside, self._at(end)]))

    def throttled(self, start: float = -float("inf"), end: float = float("inf")) -> dict[str, int]:
        """Names of what throttled between two times, and how often it began.

        The readings just outside count too: a state is valid until the next reading.
        """
        if not self.times or self.times[-1] < start:  # it failed before
            return {}
        first = max(bisect_right(self.times, start) - 1, 0)
        last = bisect_left(self.times, end) + 1
        events: dict[str, int] = {}
        before = None
        for now in self.values[first:last]:
            for name, count in throttling(self.reader, before, now).items():
                events[name] = events.get(name, 0) + count
            before = now
        return events

    def _at(self, time: float) -> float:
        """The value at a time between two readings."""
        after = max(bisect_left(self.times, time), 1)
        t0, t1 = self.times[after - 1], self.times[after]
        v0, v1 = self.values[after - 1], self.values[after]
        return v0 + (v1 - v0) * (time - t0) / (t1 - t0)


def _area(times: Sequence[float], values: Sequence[float]) -> float:
    """The integral, by trapezoids."""
    steps = zip(times, times[1:], values, values[1:], strict=False)
    return sum((t1 - t0) * (v0 + v1) / 2 for t0, t1, v0, v1 in steps)
