"""Statistics, energy and throttling of readings made by hand."""

import pytest

from edgelm.devices.sensors.reader import Kind, Reader
from edgelm.devices.sensors.series import Series


def series(
    values: list[float], kind: Kind = "power", unit: str = "W", *, step: float = 1.0
) -> Series:
    """Readings at 0, `step`, 2 · `step`, …"""
    made = Series(Reader("one", kind, unit, "", lambda: 0.0))
    for number, value in enumerate(values):
        made.add(number * step, value)
    return made


def test_statistics() -> None:
    sensor = series([10.0, 30.0, 20.0, 40.0], step=0.5).sensor()
    assert (sensor.samples, sensor.min, sensor.max, sensor.last) == (4, 10, 40, 40)
    assert sensor.median == 25
    # half a second each of 20, 25 and 30 W
    assert sensor.energy_j == pytest.approx(37.5)
    assert sensor.mean == pytest.approx(25.0)


def test_only_power_has_energy() -> None:
    sensor = series([10.0, 30.0], "temperature", "°C").sensor()
    assert (sensor.mean, sensor.energy_j) == (None, None)


def test_one_reading_has_no_energy() -> None:
    sensor = series([10.0]).sensor()
    assert (sensor.min, sensor.median, sensor.energy_j) == (10, 10, None)


def test_energy_of_a_window_is_interpolated_at_its_ends() -> None:
    ramp = series([float(value) for value in range(11)])
    # the area under y = x between 1.5 and 8.5
    assert ramp.energy(1.5, 8.5) == pytest.approx((8.5**2 - 1.5**2) / 2)
    assert ramp.energy(0.0, 10.0) == pytest.approx(50.0)
    assert ramp.energy(2.0, 6.0) == pytest.approx(16.0)


@pytest.mark.parametrize(
    ("start", "end"),
    [(-0.1, 8.0), (1.0, 10.1), (2.5, 6.5), (12.0, 14.0)],
    ids=["before", "after", "four-readings", "outside"],
)
def test_energy_that_the_readings_do_not_cover_is_unknown(start: float, end: float) -> None:
    assert series([5.0] * 11).energy(start, end) is None


def test_energy_without_readings_is_unknown() -> None:
    assert series([]).energy(0.0, 1.0) is None


def test_throttling_of_the_whole_run() -> None:
    assert series([3, 3, 4, 4, 6], "throttle", "events").throttled() == {"one": 3}
    assert series([0, 1, 1, 0, 2, 2], "throttle", "state").throttled() == {"one": 2}
    assert series([1, 1, 1], "throttle", "reasons").throttled() == {}


def test_throttling_of_a_window_takes_in_the_readings_beside_it() -> None:
    state = series([0, 0, 1, 0, 0, 0], "throttle", "state")
    assert state.throttled(1.2, 1.8) == {"one": 1}  # the reading after it
    assert state.throttled(2.1, 2.9) == {"one": 1}  # the reading before it
    assert state.throttled(0.0, 0.9) == {}
    assert state.throttled(3.0, 5.0) == {}


def test_a_counter_that_rose_elsewhere_is_no_throttling_here() -> None:
    counter = series([7, 8, 8, 8, 9], "throttle", "events")
    assert counter.throttled(1.0, 3.0) == {}
    assert counter.throttled(0.5, 2.0) == {"one": 1}
    assert counter.throttled(3.1, 3.9) == {"one": 1}


def test_a_sensor_that_had_failed_says_nothing_of_later() -> None:
    assert series([0, 1], "throttle", "state").throttled(1.5, 2.0) == {}
