"""Sensors that are files: memory, temperatures, clocks and signs of throttling."""

import math
from pathlib import Path

import pytest

from edgelm.devices.detection.probes import reason
from edgelm.devices.sensors.clocks import find_clocks
from edgelm.devices.sensors.memory import find_memory
from edgelm.devices.sensors.reader import NumberFile, Reader, file_reader
from edgelm.devices.sensors.temperature import find_temperatures
from edgelm.devices.sensors.throttle import find_throttles, throttling
from tests.devices.sensors.conftest import Keep
from tests.devices.sensors.machines import LAPTOP, ORIN_NANO, THOR, change, machine


def test_memory_in_use_is_what_is_not_available(tmp_path: Path, keep: Keep) -> None:
    readers, unread = keep(find_memory(machine(tmp_path, ORIN_NANO)))
    reader = readers["memory in use"]
    assert (reader.kind, reader.unit, reader.where) == ("memory", "MB", "/proc/meminfo")
    assert reader.read() == pytest.approx((7_802_884 - 4_983_220) * 1024 / 1e6)
    change(tmp_path, "/proc/meminfo", "MemTotal: 2000 kB\nMemFree: 1 kB\nMemAvailable: 500 kB")
    assert reader.read() == pytest.approx(1500 * 1024 / 1e6)
    assert unread == {}


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "not there"),
        ({"/proc/meminfo": "MemTotal: 100 kB"}, "it does not contain MemTotal and MemAvailable"),
        ({"/proc/meminfo/in-the-way": ""}, "is a directory"),
    ],
    ids=["no-file", "old-kernel", "folder"],
)
def test_memory_that_cannot_be_read(
    tmp_path: Path, keep: Keep, files: dict[str, str], why: str
) -> None:
    assert keep(find_memory(machine(tmp_path, files))) == (
        {},
        {"memory in use": f"/proc/meminfo: {why}"},
    )


def test_temperatures_have_the_names_of_their_zones(tmp_path: Path, keep: Keep) -> None:
    readers, unread = keep(find_temperatures(machine(tmp_path, ORIN_NANO)))
    assert list(readers) == ["cpu-thermal", "gpu-thermal", "tj-thermal"]
    assert [reader.part for reader in readers.values()] == ["cpu", "gpu", "board"]
    assert readers["cpu-thermal"].read() == pytest.approx(48.5)
    assert unread == {}


def test_a_unit_that_is_switched_off_has_no_temperature(tmp_path: Path, keep: Keep) -> None:
    readers, _ = keep(find_temperatures(machine(tmp_path, ORIN_NANO)))
    assert math.isnan(readers["gpu-thermal"].read())
    change(tmp_path, "/sys/class/thermal/thermal_zone1/temp", "47250")
    assert readers["gpu-thermal"].read() == pytest.approx(47.25)


def test_a_file_that_answers_try_again_has_no_value_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pread(*_: int) -> bytes:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("os.pread", pread)
    (tmp_path / "temp").write_text("1")
    file = NumberFile(tmp_path / "temp")
    assert math.isnan(file.read())
    file.close()


def test_zones_of_one_type_are_told_apart(tmp_path: Path, keep: Keep) -> None:
    files = dict(LAPTOP)
    files |= {"/sys/class/thermal/thermal_zone7/type": "acpitz"}
    files |= {"/sys/class/thermal/thermal_zone7/temp": "20000"}
    readers, _ = keep(find_temperatures(machine(tmp_path, files)))
    assert list(readers) == ["acpitz 0", "x86_pkg_temp", "acpitz 7"]


def test_an_unreadable_zone_is_named(tmp_path: Path, keep: Keep) -> None:
    files = {"/sys/class/thermal/thermal_zone0/type": "tboard"}
    _, unread = keep(find_temperatures(machine(tmp_path, files)))
    assert unread == {"tboard": "/sys/class/thermal/thermal_zone0/temp: not there"}


def test_clocks_of_a_jetson(tmp_path: Path, keep: Keep) -> None:
    readers, unread = keep(find_clocks(machine(tmp_path, ORIN_NANO)))
    assert {name: reader.read() for name, reader in readers.items()} == {
        "CPU clock": pytest.approx(1510.4),  # the faster of two clusters
        "GPU clock": pytest.approx(306),  # and not the video unit's
    }
    assert {reader.unit for reader in readers.values()} == {"MHz"}
    assert unread == {}


def test_thor_s_gpu_is_not_its_video_decoder(tmp_path: Path, keep: Keep) -> None:
    readers, unread = keep(find_clocks(machine(tmp_path, THOR)))
    assert readers["GPU clock"].read() == pytest.approx(1575)
    assert unread["CPU clock"].endswith("scaling_cur_freq: not there")


def test_a_core_that_is_switched_off_is_left_out(tmp_path: Path, keep: Keep) -> None:
    files = dict(LAPTOP)
    files["/sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq"] = "<unknown>"
    readers, _ = keep(find_clocks(machine(tmp_path, files)))
    assert readers["CPU clock"].read() == pytest.approx(900)


def test_throttle_signs_of_a_jetson(tmp_path: Path, keep: Keep) -> None:
    readers, _ = keep(find_throttles(machine(tmp_path, ORIN_NANO)))
    assert {name: reader.unit for name, reader in readers.items()} == {
        "over-current oc1": "events",
        "over-current oc2": "events",
        "cpu-throttle-alert": "state",
        "gpu-throttle-alert": "state",
    }


def test_throttle_signs_of_a_laptop(tmp_path: Path, keep: Keep) -> None:
    readers, _ = keep(find_throttles(machine(tmp_path, LAPTOP)))
    assert list(readers) == ["Processor", "intel_powerclamp"]


def throttle(unit: str) -> Reader:
    return Reader(
        "GPU 0 throttling" if unit == "reasons" else "sign", "throttle", unit, "", lambda: 0.0
    )


@pytest.mark.parametrize(
    ("unit", "before", "now", "expected"),
    [
        ("events", None, 7, {}),
        ("events", 7, 7, {}),
        ("events", 7, 9, {"sign": 2}),
        ("state", None, 0, {}),
        ("state", -1, -1, {}),
        ("state", None, 2, {"sign": 1}),
        ("state", 0, 1, {"sign": 1}),
        ("state", 1, 2, {"sign": 0}),
        ("reasons", None, 0x1, {}),
        ("reasons", None, 0x2 | 0x10 | 0x100, {}),
        ("reasons", None, 0x4, {"GPU 0 software power cap": 1}),
        (
            "reasons",
            0x40,
            0x48,
            {"GPU 0 hardware slowdown": 1, "GPU 0 hardware thermal slowdown": 0},
        ),
        (
            "reasons",
            0x1,
            0xA0,
            {"GPU 0 software thermal slowdown": 1, "GPU 0 hardware power brake": 1},
        ),
    ],
)
def test_what_throttles(
    unit: str, before: float | None, now: float, expected: dict[str, int]
) -> None:
    assert throttling(throttle(unit), before, now) == expected


def test_a_file_that_may_not_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = machine(tmp_path, {"/sys/secret": "5"})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    found = file_reader(probes, [tmp_path / "sys/secret"], "secret", "clock", "MHz")
    assert (found.where, getattr(found, "why", None)) == ("/sys/secret", "only root may read it")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(1, "Operation not permitted"), "only root may read it"),
        (FileNotFoundError(2, "No such file or directory"), "not there"),
        (OSError(5, "Input/output error"), "input/output error"),
        (ValueError("no number"), "no number"),
        (RuntimeError(), "RuntimeError"),
    ],
    ids=["permission", "missing", "other", "value", "silent"],
)
def test_reasons(error: Exception, expected: str) -> None:
    assert reason(error) == expected
