"""GPUs, from an NVML that answers from a table."""

from pathlib import Path
from typing import Any

import pytest

from edgelm.devices.sensors.nvml import find_gpus
from tests.devices.sensors.conftest import Keep
from tests.devices.sensors.machines import RTX, FakeNvml, machine, no_pynvml

SHARED = {key: value for key, value in RTX.items() if "Memory" not in key}


def test_every_sensor_of_a_gpu(tmp_path: Path, keep: Keep) -> None:
    readers, unread = keep(find_gpus(machine(tmp_path, {}, lambda: FakeNvml(RTX))))
    assert {name: (reader.read(), reader.unit) for name, reader in readers.items()} == {
        "GPU 0 memory": (1234, "MB"),
        "GPU 0 power": (54.3, "W"),
        "GPU 0 temperature": (61, "°C"),
        "GPU 0 SM clock": (2370, "MHz"),
        "GPU 0 memory clock": (8001, "MHz"),
        "GPU 0 throttling": (1, "reasons"),
    }
    assert {reader.part for reader in readers.values()} == {"gpu"}
    assert unread == {}


def test_every_gpu_is_read(tmp_path: Path, keep: Keep) -> None:
    other: dict[str, Any] = {**RTX, "nvmlDeviceGetPowerUsage": 7000}
    readers, _ = keep(find_gpus(machine(tmp_path, {}, lambda: FakeNvml(RTX, other))))
    assert (readers["GPU 0 power"].read(), readers["GPU 1 power"].read()) == (54.3, 7.0)


def test_memory_that_is_shared_says_where_to_look(tmp_path: Path, keep: Keep) -> None:
    readers, unread = keep(find_gpus(machine(tmp_path, {}, lambda: FakeNvml(SHARED))))
    assert "GPU 0 memory" not in readers
    assert unread == {"GPU 0 memory": "NVML: shared with the processor: see memory in use"}


def test_what_a_gpu_does_not_support_is_named(tmp_path: Path, keep: Keep) -> None:
    some = {key: value for key, value in RTX.items() if "Power" not in key}
    _, unread = keep(find_gpus(machine(tmp_path, {}, lambda: FakeNvml(some))))
    assert unread == {"GPU 0 power": "NVML: not supported"}


def test_older_drivers_call_reasons_otherwise(tmp_path: Path, keep: Keep) -> None:
    old = {
        **RTX,
        "nvmlDeviceGetCurrentClocksEventReasons": FakeNvml.error(13),
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x20,
    }
    readers, _ = keep(find_gpus(machine(tmp_path, {}, lambda: FakeNvml(old))))
    assert readers["GPU 0 throttling"].read() == 0x20


def test_nvml_is_shut_down_once(tmp_path: Path) -> None:
    nvml = FakeNvml(RTX)
    readers, _ = find_gpus(machine(tmp_path, {}, lambda: nvml))
    assert nvml.open == 1
    for reader in readers:
        reader.close()
    assert nvml.open == 0


def test_nvml_is_shut_down_where_nothing_can_be_read(tmp_path: Path) -> None:
    nvml = FakeNvml({})
    readers, unread = find_gpus(machine(tmp_path, {}, lambda: nvml))
    assert readers == []
    assert len(unread) == 6
    assert nvml.open == 0


def test_a_gpu_that_fell_off_the_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(RTX)

    def lost(number: int) -> dict[str, Any]:
        raise nvml.error(15)

    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", lost)
    readers, unread = find_gpus(machine(tmp_path, {}, lambda: nvml))
    assert readers == []
    assert [(one.what, one.why) for one in unread] == [("GPU", "lost")]
    assert nvml.open == 0


def test_without_the_package(tmp_path: Path) -> None:
    readers, unread = find_gpus(machine(tmp_path, {}, no_pynvml))
    assert readers == []
    assert unread[0].why == "nvidia-ml-py is not installed; pip install 'edgelm[nvml]'"


def test_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()

    def missing() -> None:
        raise nvml.error(12)

    monkeypatch.setattr(nvml, "nvmlInit", missing)
    readers, unread = find_gpus(machine(tmp_path, {}, lambda: nvml))
    assert readers == []
    assert [(one.what, one.why) for one in unread] == [("GPU", "the driver does not answer: lost")]
