"""Power modes, clocks and batteries."""

from pathlib import Path

import msgspec
import pytest

from edgelm.devices.checks.host.power import battery, clocks, power_mode
from edgelm.devices.detection.machine import Unread
from tests.devices.checks.recorded import LAPTOP, ORIN_NANO, context, with_jetson

NVPMODEL = "/etc/nvpmodel.conf"
# Of an Orin Nano Super, shortened: neither the first nor the last is the highest.
MODES = """\
< PARAM TYPE=FILE NAME=CPU_ONLINE >
# < POWER_MODEL ID=9 NAME=99W >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< POWER_MODEL ID=3 NAME=7W >
< PM_CONFIG DEFAULT=1 >
"""
GPU = "/sys/class/devfreq/17000000.gpu"


@pytest.mark.parametrize("mode", ["15W", "25W", "7W"])
def test_lower_mode(mode: str, tmp_path: Path) -> None:
    machine = with_jetson(ORIN_NANO, power_mode=mode)
    verdict = power_mode(context(machine, tmp_path, files={NVPMODEL: MODES}))
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what == f"the power mode is {mode}; the module also has MAXN_SUPER"
    assert verdict.fix == "sudo nvpmodel -m 2"


def test_highest_mode(tmp_path: Path) -> None:
    verdict = power_mode(context(ORIN_NANO, tmp_path))
    assert verdict
    assert verdict.severity == "ok"
    assert verdict.what == "the power mode is MAXN_SUPER, the highest"


def test_highest_mode_without_a_maxn(tmp_path: Path) -> None:
    modes = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n"
    for mode, severity in (("15W", "ok"), ("7W", "warning")):
        machine = with_jetson(ORIN_NANO, power_mode=mode)
        verdict = power_mode(context(machine, tmp_path, files={NVPMODEL: modes}))
        assert verdict
        assert verdict.severity == severity


def test_unknown_mode(tmp_path: Path) -> None:
    machine = msgspec.structs.replace(
        with_jetson(ORIN_NANO, power_mode=None),
        unread=(Unread("power mode", "/var/lib/nvpmodel/status", "not there"),),
    )
    verdict = power_mode(context(machine, tmp_path))
    assert verdict
    assert verdict.severity == "unknown"
    assert verdict.why == "/var/lib/nvpmodel/status: not there"


def test_modes_that_cannot_be_read(tmp_path: Path) -> None:
    machine = with_jetson(ORIN_NANO, power_mode="15W")
    with pytest.raises(FileNotFoundError):
        power_mode(context(machine, tmp_path))
    verdict = power_mode(context(machine, tmp_path, files={NVPMODEL: "# empty\n"}))
    assert verdict
    assert verdict.severity == "unknown"


def frequencies(lowest: int, highest: int, now: int, folder: str = GPU) -> dict[str, str]:
    values = {"min_freq": lowest, "max_freq": highest, "cur_freq": now}
    return {f"{folder}/{name}": f"{mhz * 1_000_000}\n" for name, mhz in values.items()}


def test_floating_clock(tmp_path: Path) -> None:
    verdict = clocks(context(ORIN_NANO, tmp_path, files=frequencies(306, 1020, 306)))
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what == "the GPU's clock varies between 306 and 1020 MHz, now 306"
    assert verdict.fix.startswith("sudo jetson_clocks")


@pytest.mark.parametrize("name", ["17000000.gpu", "17000000.ga10b", "gpu-gpc-0"])
def test_pinned_clock(name: str, tmp_path: Path) -> None:
    files = frequencies(1020, 1020, 1020, folder=f"/sys/class/devfreq/{name}")
    verdict = clocks(context(ORIN_NANO, tmp_path, files=files))
    assert verdict
    assert verdict.severity == "ok"


SUPER = "jetson-orin-nano-8gb-super"
ORIN_NANO_SUPER = msgspec.structs.replace(ORIN_NANO, profile=SUPER)
TABLE = f"{GPU}/available_frequencies"


@pytest.mark.parametrize("lowest", [306, 625])
def test_clock_that_is_limited_below_the_mode(lowest: int, tmp_path: Path) -> None:
    verdict = clocks(context(ORIN_NANO_SUPER, tmp_path, files=frequencies(lowest, 625, 306)))
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what == "the GPU's clock is limited to 625 MHz; MAXN_SUPER allows 1020"
    assert verdict.why == "prompts take 1.6 times as long"
    assert verdict.fix.startswith("sudo nvpmodel -m 2 && sudo reboot")


def test_firmware_without_the_modes_clock(tmp_path: Path) -> None:
    files = frequencies(306, 625, 306) | {TABLE: "306000000 408000000 624750000\n"}
    verdict = clocks(context(ORIN_NANO_SUPER, tmp_path, files=files))
    assert verdict
    assert verdict.fix.startswith("the firmware's table of clocks ends at 625 MHz: flash")


def test_clock_of_the_boards_own_nvpmodel(tmp_path: Path) -> None:
    machine = with_jetson(ORIN_NANO_SUPER, power_mode="25W", power_mode_id=1)
    # Another revision of the file has 820 MHz where the profile has 918.
    conf = "< POWER_MODEL ID=1 NAME=25W >\nGPU MIN_FREQ 0\nGPU MAX_FREQ 820000000\n< PM_CONFIG"
    files = frequencies(820, 820, 820) | {NVPMODEL: conf}
    verdict = clocks(context(machine, tmp_path, files=files))
    assert verdict
    assert verdict.severity == "ok"


def test_clock_in_a_mode_of_the_owners(tmp_path: Path) -> None:
    machine = with_jetson(ORIN_NANO_SUPER, power_mode="MINE")
    verdict = clocks(context(machine, tmp_path, files=frequencies(400, 400, 400)))
    assert verdict
    assert verdict.severity == "ok"


def test_mode_that_limits_neither_gpu_nor_memory(tmp_path: Path) -> None:
    machine = msgspec.structs.replace(
        with_jetson(ORIN_NANO, part="p3767-0000", power_mode="40W"),
        profile="jetson-orin-nx-16gb-super",
    )
    modes = "< POWER_MODEL ID=0 NAME=MAXN_SUPER >\n< POWER_MODEL ID=4 NAME=40W >\n"
    verdict = power_mode(context(machine, tmp_path, files={NVPMODEL: modes}))
    assert verdict
    assert verdict.severity == "ok"
    assert "MAXN_SUPER (sudo nvpmodel -m 0) only adds CPU speed and power" in verdict.what


def test_what_a_lower_mode_limits(tmp_path: Path) -> None:
    machine = with_jetson(ORIN_NANO_SUPER, power_mode="15W")
    verdict = power_mode(context(machine, tmp_path, files={NVPMODEL: MODES}))
    assert verdict
    assert verdict.why.startswith(
        "15W limits the GPU's clock to 612 of 1020 MHz, the memory to 68.3 of 102.4 GB/s; keep it"
    )


def test_clock_that_cannot_be_read(tmp_path: Path) -> None:
    verdict = clocks(context(ORIN_NANO, tmp_path))
    assert verdict
    assert verdict.severity == "unknown"
    (tmp_path / GPU.lstrip("/")).mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        clocks(context(ORIN_NANO, tmp_path))


SUPPLY = "/sys/class/power_supply"


@pytest.mark.parametrize(
    ("status", "severity"),
    [("Discharging", "warning"), ("Charging", "ok"), ("Full", "ok"), ("Not charging", "ok")],
)
def test_battery(status: str, severity: str, tmp_path: Path) -> None:
    files = {
        f"{SUPPLY}/AC/type": "Mains\n",
        f"{SUPPLY}/BAT0/type": "Battery\n",
        f"{SUPPLY}/BAT0/status": f"{status}\n",
    }
    verdict = battery(context(LAPTOP, tmp_path, files=files))
    assert verdict
    assert verdict.severity == severity


def test_battery_of_a_mouse(tmp_path: Path) -> None:
    files = {
        f"{SUPPLY}/hidpp_battery_0/type": "Battery\n",
        f"{SUPPLY}/hidpp_battery_0/scope": "Device\n",
        f"{SUPPLY}/hidpp_battery_0/status": "Discharging\n",
    }
    assert battery(context(LAPTOP, tmp_path, files=files)) is None


def test_battery_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        battery(context(LAPTOP, tmp_path, files={f"{SUPPLY}/BAT0/type": "Battery\n"}))


def test_other_machines(tmp_path: Path) -> None:
    here = context(LAPTOP, tmp_path)
    assert power_mode(here) is None
    assert clocks(here) is None
    assert battery(here) is None
