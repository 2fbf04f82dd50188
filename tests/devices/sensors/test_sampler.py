"""The sampler on a clock of its own: when it reads, what it keeps, what it survives."""

import math
import threading
from collections.abc import Callable

import msgspec
import pytest

from edgelm.devices.detection.machine import Unread
from edgelm.devices.sensors.reader import Kind, Part, Reader
from edgelm.devices.sensors.sampler import Sampler, SensorLog


class Clock:
    """Time that passes only in `wait`, until it ends."""

    def __init__(self, seconds: float) -> None:
        self.now = 1000.0
        self.end = self.now + seconds

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return self.now > self.end


def reader(
    read: Callable[[], float], kind: Kind = "power", unit: str = "W", *, part: Part = "board"
) -> Reader:
    return Reader(f"{part} {kind}", kind, unit, "/sys/one", read, part)


def watched(clock: Clock, *readers: Reader, interval_s: float = 0.25) -> Sampler:
    """A sampler that ran until the clock's end, in this thread."""
    sampler = Sampler(readers, interval_s=interval_s, clock=clock)
    sampler._watch(clock.wait)
    return sampler


def test_one_reading_an_interval() -> None:
    clock = Clock(10.0)
    times: list[float] = []
    watched(clock, reader(lambda: times.append(clock()) or 1.0))  # type: ignore[func-returns-value]
    assert times == [1000.0 + 0.25 * number for number in range(41)]


def test_slow_readings_skip_intervals_and_keep_the_grid() -> None:
    clock = Clock(3.0)
    times: list[float] = []

    def read() -> float:
        times.append(clock.now)
        clock.now += 0.3  # longer than an interval
        return 1.0

    watched(clock, reader(read))
    assert times == [1000.0, 1000.5, 1001.0, 1001.5, 1002.0, 1002.5, 1003.0]


def test_the_record() -> None:
    clock = Clock(10.0)
    watts = reader(lambda: 20.0 if clock() < 1005 else 40.0)
    record = watched(clock, watts).record
    assert (record.interval_s, record.seconds) == (0.25, 10.0)
    (power,) = record.sensors
    assert (power.name, power.unit, power.samples) == ("board power", "W", 41)
    assert (power.min, power.median, power.max, power.last) == (20, 40, 40, 40)
    # 20 W, a ramp of one interval, 40 W
    assert power.energy_j == pytest.approx(4.75 * 20 + 0.25 * 30 + 5 * 40)
    assert record.throttle_events == {}
    assert record.unread == ()
    assert msgspec.json.decode(msgspec.json.encode(record), type=SensorLog) == record


def test_a_sensor_that_fails_is_dropped_and_the_others_go_on() -> None:
    clock = Clock(1.0)
    left = [5.0, 6.0]
    failing = reader(lambda: left.pop(0), kind="clock", unit="MHz")
    record = watched(clock, failing, reader(lambda: 1.0)).record
    assert [sensor.samples for sensor in record.sensors] == [2, 5]
    why = "failed while running: pop from empty list"
    assert record.unread == (Unread("board clock", "/sys/one", why),)


def test_a_power_sensor_that_failed_has_no_energy() -> None:
    clock = Clock(1.0)
    left = [5.0, 6.0]
    record = watched(clock, reader(lambda: left.pop(0))).record
    assert (record.sensors[0].energy_j, record.sensors[0].mean) == (None, 5.5)


def test_a_value_that_is_not_there_yet_is_waited_for() -> None:
    clock = Clock(1.0)
    values = iter([math.nan, 5.0, math.nan, 7.0, 9.0])
    record = watched(clock, reader(lambda: next(values)), reader(lambda: math.nan)).record
    (sensor,) = record.sensors
    assert (sensor.samples, sensor.min, sensor.max) == (3, 5, 9)
    assert record.unread == (Unread("board power", "/sys/one", "returned no value"),)


def test_energy_between() -> None:
    clock = Clock(10.0)
    package = reader(lambda: 10.0, part="cpu")
    sampler = watched(clock, package, reader(lambda: 100.0, part="gpu"))
    assert sampler.energy_between(1002.1, 1007.1, {"cpu"}) == pytest.approx(50)
    assert sampler.energy_between(1002.1, 1007.1, {"cpu", "gpu"}) == pytest.approx(550)
    assert sampler.energy_between(1002.1, 1002.9, {"cpu"}) is None
    assert sampler.energy_between(1002.1, 1007.1, ()) is None
    assert sampler.power_sensors({"cpu"}) == ("cpu power",)


def test_a_board_s_power_has_its_parts_in_it() -> None:
    sampler = watched(
        Clock(10.0), reader(lambda: 30.0, part="board"), reader(lambda: 20.0, part="gpu")
    )
    assert sampler.power_sensors({"cpu", "gpu"}) == ("board power",)
    assert sampler.energy_between(1001.0, 1003.0, {"cpu", "gpu"}) == pytest.approx(60)


def test_energy_is_unknown_when_one_of_its_sensors_failed() -> None:
    left = [5.0] * 10
    sampler = watched(
        Clock(10.0), reader(lambda: left.pop(), part="cpu"), reader(lambda: 1.0, part="cpu")
    )
    assert sampler.energy_between(1000.0, 1002.0, {"cpu"}) == pytest.approx(12)
    assert sampler.energy_between(1005.0, 1008.0, {"cpu"}) is None


def test_throttling() -> None:
    clock = Clock(10.0)
    sampler = watched(
        clock,
        reader(lambda: float(1003 <= clock() < 1004), kind="throttle", unit="state"),
        reader(lambda: 4.0 if clock() > 1008 else 2.0, kind="throttle", unit="events", part="gpu"),
    )
    assert sampler.record.throttle_events == {"board throttle": 1, "gpu throttle": 2}
    assert sampler.throttled_between(1003.2, 1003.4) == ("board throttle",)
    assert sampler.throttled_between(1005.0, 1007.0) == ()
    assert sampler.throttled_between(1001.0, 1009.0) == ("board throttle", "gpu throttle")


def test_the_thread_reads_and_ends_with_the_context() -> None:
    read, closed = threading.Event(), []

    def number() -> float:
        read.set()
        return 1.0

    one = Reader("one", "power", "W", "", number, close=lambda: closed.append("one"))
    with Sampler([one], interval_s=1000.0) as sampler:
        assert read.wait(10)
        assert sampler._thread.daemon
        assert closed == []
    assert not sampler._thread.is_alive()
    assert closed == ["one"]
    assert sampler.record.sensors[0].samples == 2  # at the start and at the end
    assert sampler.record.cost >= 0


def test_sensors_are_closed_after_an_error_too() -> None:
    closed: list[str] = []
    one = Reader("one", "power", "W", "", lambda: 1.0, close=lambda: closed.append("one"))
    with pytest.raises(KeyError), Sampler([one]):
        raise KeyError
    assert closed == ["one"]


def test_a_sensor_that_hangs_does_not_hang_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgelm.devices.sensors.sampler._TIMEOUT_S", 0.01)
    go_on = threading.Event()
    hanging = reader(lambda: float(go_on.wait(60)))
    with Sampler([hanging]) as sampler:
        pass
    assert sampler.record.unread[0].why == "one of them does not answer"
    go_on.set()
    sampler._thread.join()


def test_without_sensors_there_is_an_empty_record() -> None:
    with Sampler([]) as sampler:
        pass
    assert sampler.record.sensors == ()
