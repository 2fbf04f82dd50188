"""Power: a Jetson's rails, and the processor's energy counters."""

import math
from pathlib import Path

import pytest

from edgelm.devices.sensors.rails import find_rails
from edgelm.devices.sensors.rapl import find_rapl
from tests.devices.sensors.conftest import Keep
from tests.devices.sensors.machines import (
    AGX_ORIN,
    LAPTOP,
    MONITOR,
    ORIN_NANO,
    THOR,
    Files,
    change,
    machine,
)

ZONE = "/sys/class/powercap/intel-rapl:0"


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_vdd_in_is_everything(tmp_path: Path, keep: Keep) -> None:
    readers, unread = keep(find_rails(machine(tmp_path, ORIN_NANO)))
    reader = readers.pop("VDD_IN")
    assert readers == {}
    assert (reader.unit, reader.part, reader.where) == ("W", "board", MONITOR)
    assert reader.read() == pytest.approx(6.0)
    change(tmp_path, f"{MONITOR}/curr1_input", "2400")
    assert reader.read() == pytest.approx(12.0)
    assert unread == {}


def test_rails_are_summed_but_not_twice(tmp_path: Path, keep: Keep) -> None:
    # 3.2 + 0.8 + 4.9 W; the memory's 0.4 W are inside VIN_SYS_5V0
    readers, _ = keep(find_rails(machine(tmp_path, AGX_ORIN)))
    reader = readers["VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"]
    assert reader.read() == pytest.approx(8.9)


def test_thor_s_input_is_everything(tmp_path: Path, keep: Keep) -> None:
    readers, unread = keep(find_rails(machine(tmp_path, THOR)))
    assert {name: reader.read() for name, reader in readers.items()} == {"VIN": 38.25}
    assert unread == {}


def test_thor_without_its_input_has_the_module_s_rails(tmp_path: Path, keep: Keep) -> None:
    files = {path: text for path, text in THOR.items() if "power1" not in path}
    readers, unread = keep(find_rails(machine(tmp_path, files)))
    assert readers["VDD_GPU + VDD_CPU_SOC_MSS"].read() == pytest.approx(19.2)
    assert unread == {"VIN": "/sys/class/hwmon/hwmon2/power1_input: not there"}


def test_a_rail_that_cannot_be_read(tmp_path: Path, keep: Keep) -> None:
    files = {path: text for path, text in ORIN_NANO.items() if "curr1" not in path}
    readers, unread = keep(find_rails(machine(tmp_path, files)))
    assert (readers, unread) == ({}, {"VDD_IN": f"{MONITOR}: not there"})


def test_a_jetson_without_monitors_says_so_and_a_pc_does_not(tmp_path: Path, keep: Keep) -> None:
    jetson = {"/proc/device-tree/compatible": "nvidia,p3768\0nvidia,tegra234\0"}
    _, unread = keep(find_rails(machine(tmp_path / "jetson", jetson)))
    assert unread == {"board power": "/sys/class/hwmon: there is neither an INA3221 nor an INA238"}
    assert find_rails(machine(tmp_path / "pc", LAPTOP)) == ([], [])


def test_packages_and_their_memory_are_counted(tmp_path: Path, keep: Keep) -> None:
    readers, unread = keep(find_rapl(machine(tmp_path, LAPTOP), Clock()))
    assert list(readers) == ["package-0", "package-0 dram"]  # not its cores, not psys around it
    assert {reader.part for reader in readers.values()} == {"cpu"}
    assert unread == {}


def test_power_is_energy_over_time(tmp_path: Path, keep: Keep) -> None:
    clock = Clock()
    readers, _ = keep(find_rapl(machine(tmp_path, LAPTOP), clock))
    read = readers["package-0"].read
    assert math.isnan(read())  # there is no reading before it
    clock.now += 0.5
    change(tmp_path, f"{ZONE}/energy_uj", "11000000")  # 10 J later
    assert read() == pytest.approx(20.0)
    clock.now += 0.001
    change(tmp_path, f"{ZONE}/energy_uj", "11500000")
    assert read() == pytest.approx(20.0)  # too soon to tell
    clock.now += 0.999
    assert read() == pytest.approx(0.5)  # and nothing of it is lost


def test_a_counter_starts_again_at_zero(tmp_path: Path, keep: Keep) -> None:
    clock = Clock()
    files = {**LAPTOP, f"{ZONE}/energy_uj": "262142328850"}  # 1 J below its end
    readers, _ = keep(find_rapl(machine(tmp_path, files), clock))
    read = readers["package-0"].read
    read()
    clock.now += 1.0
    change(tmp_path, f"{ZONE}/energy_uj", "4000000")
    assert read() == pytest.approx(5.0)


FAILURES: dict[str, tuple[Files, str]] = {
    "no-zones": ({}, "/sys/class/powercap/intel-rapl:*: not there"),
    "folder": (
        {f"{ZONE}/name": "package-0", f"{ZONE}/energy_uj/in-the-way": ""},
        f"{ZONE}/energy_uj: not there",
    ),
    "no-number": (
        {
            f"{ZONE}/name": "package-0",
            f"{ZONE}/energy_uj": "many",
            f"{ZONE}/max_energy_range_uj": "9",
        },
        f"{ZONE}/energy_uj: could not convert",
    ),
}


@pytest.mark.parametrize(("files", "why"), FAILURES.values(), ids=FAILURES)
def test_energy_that_cannot_be_read(tmp_path: Path, keep: Keep, files: Files, why: str) -> None:
    readers, unread = keep(find_rapl(machine(tmp_path, files), Clock()))
    assert readers == {}
    assert unread["processor power"].startswith(why)


def test_new_kernels_show_energy_to_root_only(
    tmp_path: Path, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = machine(tmp_path, LAPTOP)
    opened = Path.open

    def refuse(path: Path, *arguments: object, **named: object) -> object:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    readers, unread = keep(find_rapl(probes, Clock()))
    assert readers == {}
    assert unread["processor power"].endswith("energy_uj: only root may read it")
