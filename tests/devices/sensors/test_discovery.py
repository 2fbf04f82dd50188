"""All sensors of a whole machine."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

from edgelm.devices.detection.probes import Probes
from edgelm.devices.sensors import open_sensors
from tests.devices.sensors.machines import (
    LAPTOP,
    MEMINFO,
    ORIN_NANO,
    RTX,
    FakeNvml,
    machine,
)


def names(probes: Probes) -> tuple[list[str], dict[str, str]]:
    """Names of the sensors that gave values, and why others did not."""
    sampler = open_sensors(probes)
    sampler.sample()
    record = sampler.record
    sampler.close()
    return [sensor.name for sensor in record.sensors], {one.what: one.why for one in record.unread}


def test_a_jetson(tmp_path: Path) -> None:
    read, unread = names(machine(tmp_path, ORIN_NANO))
    assert read == [
        "memory in use",
        "VDD_IN",
        "cpu-thermal",
        "tj-thermal",
        "CPU clock",
        "GPU clock",
        "over-current oc1",
        "over-current oc2",
        "cpu-throttle-alert",
        "gpu-throttle-alert",
    ]
    assert set(unread) == {"gpu-thermal", "GPU"}
    assert unread["gpu-thermal"] == "returned no value"


def test_a_laptop(tmp_path: Path) -> None:
    clock = itertools.count().__next__  # a second for every question
    sampler = open_sensors(machine(tmp_path, LAPTOP, lambda: FakeNvml(RTX)), clock=clock)
    sampler.sample()
    sampler.sample()  # energy counters need two readings
    sampler.close()
    names = {sensor.name for sensor in sampler.record.sensors}
    assert {"package-0", "x86_pkg_temp", "CPU clock", "Processor", "GPU 0 power"} <= names
    assert sampler.record.unread == ()
    assert sampler.power_sensors({"cpu"}) == ("package-0", "package-0 dram")


def test_nvml_is_open_as_long_as_the_context(tmp_path: Path) -> None:
    nvml = FakeNvml(RTX)
    with open_sensors(machine(tmp_path, LAPTOP, lambda: nvml)):
        assert nvml.open == 1
    assert nvml.open == 0


def test_a_virtual_machine_says_what_it_lacks(tmp_path: Path) -> None:
    read, unread = names(machine(tmp_path, {"/proc/meminfo": MEMINFO}))
    assert read == ["memory in use"]
    assert list(unread) == ["processor power", "temperature", "CPU clock", "GPU", "throttling"]


def test_this_machine_can_be_sampled() -> None:
    with open_sensors(interval_s=0.01) as sampler:
        pass
    record = sampler.record
    assert record.sensors[0].name == "memory in use"
    assert record.sensors[0].samples >= 2
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < record.sensors[0].max < physical / 1e6


def test_importing_sensors_is_light() -> None:
    program = (
        "import sys, edgelm.devices.sensors; "
        "print({'torch', 'numpy', 'onnxruntime', 'pynvml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
