"""Whether a machine is a laptop."""

from pathlib import Path

import pytest

from edgelm.devices.detection.chassis import is_laptop
from tests.devices.recorded_machines import recorded

CHASSIS = "/sys/class/dmi/id/chassis_type"
BATTERY = "/sys/class/power_supply/BAT0"


@pytest.mark.parametrize(
    ("files", "laptop"),
    [
        ({}, False),
        ({CHASSIS: "3\n"}, False),
        ({CHASSIS: "10\n"}, True),
        ({f"{BATTERY}/type": "Battery\n"}, True),
        ({f"{BATTERY}/type": "Battery\n", f"{BATTERY}/scope": "Device\n"}, False),
        ({f"{BATTERY}/type": "Mains\n"}, False),
    ],
)
def test_laptop(tmp_path: Path, files: dict[str, str], laptop: bool) -> None:
    assert is_laptop(recorded("plain-pc", tmp_path, files=files)) == laptop
