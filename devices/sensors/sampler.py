"""Read all sensors at a fixed interval, in a thread, during a measurement.

Reading 35 sensors takes 0.25 ms on a server's core: 0.1% of it at five readings per second. A
Jetson's cores are a few times slower; the log contains the actual cost.
"""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from types import TracebackType

import msgspec

from edgelm.devices.detection.machine import Unread
from edgelm.devices.sensors.reader import Part, Reader
from edgelm.devices.sensors.series import Sensor, Series
from edgelm.python310 import Self

INTERVAL_S = 0.2
_TIMEOUT_S = 5.0  # for a driver that does not answer


class SensorLog(msgspec.Struct, frozen=True):
    """Readings of all sensors in summary.

    `throttle_events` counts by name how often throttling began. `cost` is the processor time of
    the readings, as a share of one core.
    """

    interval_s: float
    seconds: float
    cost: float
    sensors: tuple[Sensor, ...]
    throttle_events: dict[str, int]
    unread: tuple[Unread, ...]


class Sampler:
    """A context manager that reads sensors while it is open, and stores every reading.

    Args:
        readers: the sensors; they are closed with the sampler.
        unread: sensors that do not work, with the reason.
        clock: seconds; time windows refer to it.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        unread: Sequence[Unread] = (),
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._series = [Series(reader) for reader in readers]
        self._working = list(self._series)
        self._unread = list(unread)
        self._interval_s = interval_s
        self._clock = clock
        self._started = self._ended = clock()
        self._busy_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, args=(self._stop.wait,), name="edgelm-sensors", daemon=True
        )

    def __enter__(self) -> Self:
        self._started = self._clock()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(_TIMEOUT_S)
        if self._thread.is_alive():
            self._unread.append(Unread("sensors", "their thread", "one of them does not answer"))
            return
        self.sample()  # so that the last window is covered to its end
        self.close()

    def close(self) -> None:
        """Close the sensors; the context manager calls it at its end."""
        for series in self._series:
            series.reader.close()

    def sample(self) -> None:
        """Read every sensor once. A sensor that fails is not read again."""
        before = time.thread_time()
        for series in list(self._working):
            reader = series.reader
            try:
                value = reader.read()
            except Exception as error:  # a broken sensor must not end a measurement
                self._working.remove(series)
                why = f"failed while running: {error}"
                self._unread.append(Unread(reader.name, reader.where, why))
                continue
            if value == value:  # NaN: no value now
                series.add(self._clock(), value)
        self._ended = self._clock()
        self._busy_s += time.thread_time() - before

    def energy_between(self, start: float, end: float, parts: Collection[Part]) -> float | None:
        """Energy of these parts in joules; None unless each of their sensors covers the window."""
        energies = [series.energy(start, end) for series in self._power_of(parts)]
        known = [energy for energy in energies if energy is not None]
        return sum(known) if known and len(known) == len(energies) else None

    def power_sensors(self, parts: Collection[Part]) -> tuple[str, ...]:
        """Names of the sensors whose energy is summed for these parts."""
        return tuple(series.reader.name for series in self._power_of(parts))

    def throttled_between(self, start: float, end: float) -> tuple[str, ...]:
        """Names of what throttled in a window or next to it."""
        events = [s.throttled(start, end) for s in self._series if s.reader.kind == "throttle"]
        return tuple(name for one in events for name in one)

    @property
    def record(self) -> SensorLog:
        """The summary of all readings."""
        read = [series for series in self._series if series.times]
        silent = [
            Unread(series.reader.name, series.reader.where, "returned no value")
            for series in self._working
            if not series.times
        ]
        throttles = [series.throttled() for series in read if series.reader.kind == "throttle"]
        seconds = self._ended - self._started
        return SensorLog(
            interval_s=self._interval_s,
            seconds=seconds,
            cost=self._busy_s / seconds if seconds else 0.0,
            sensors=tuple(series.sensor(whole=series in self._working) for series in read),
            throttle_events={name: n for events in throttles for name, n in events.items()},
            unread=(*self._unread, *silent),
        )

    def _power_of(self, parts: Collection[Part]) -> list[Series]:
        """Power sensors of the parts, or only the board's monitor, which includes everything."""
        power = [series for series in self._series if series.reader.kind == "power"]
        board = [series for series in power if series.reader.part == "board"]
        return board or [series for series in power if series.reader.part in parts]

    def _watch(self, wait: Callable[[float], bool]) -> None:
        due = self._clock()
        while True:
            self.sample()
            due += self._interval_s
            late = self._clock() - due
            if late > 0:  # skip missed readings, and keep the time grid
                due += self._interval_s * (1 + late // self._interval_s)
            if wait(due - self._clock()):
                return
