"""A profile for people: every figure that is shown names its source, guesses most of all."""

import re

import msgspec
import pytest

from edgelm.devices.profile_tables import Figure
from edgelm.devices.profile_text import describe, device_table
from tests.devices.planner.test_plan import TOASTER
from tests.devices.test_profile import DELIVERED

FIGURES = ("  reserved", "  bandwidth", "  dense", "  clock", "  SMs", "  power cap")
GOLDEN = """\
toaster: a toaster
also called bread, crust
cpu, cpu, SM87

memory         dedicated, 0.003725 GiB  [hand, ASSUMED]
  reserved     0.0009313 GiB  [hand, ASSUMED]
  available    0.0 GiB
power mode     brown (default for plans)
  bandwidth    1 GB/s  [hand, ASSUMED]
  dense fp32   0.001 T operations/s  [hand, ASSUMED]
  dense int8   0.002 T operations/s  [hand, ASSUMED]
  dense int4   0.004 T operations/s  [hand, ASSUMED]
power mode     pale
  bandwidth    0.5 GB/s  [hand, ASSUMED]
  dense fp32   0.0005 T operations/s  [hand, ASSUMED]
  dense int8   0.001 T operations/s  [hand, ASSUMED]
  dense int4   0.002 T operations/s  [hand, ASSUMED]
  power cap    10 W  [hand, ASSUMED]
"""


def test_a_measured_bandwidth_stands_below_the_specified_one() -> None:
    text = describe(DELIVERED["dgx-spark-gb10"])
    assert "\n    measured   232 GB/s  [gb10_reads, measured]\n" in text
    assert "    measured" not in describe(DELIVERED["jetson-thor-t5000"])


def test_every_line_of_a_small_one() -> None:
    toaster = msgspec.structs.replace(TOASTER, aliases=("bread", "crust"), sm=87, notes="Hot.")
    text = describe(toaster)
    assert text.startswith(GOLDEN)
    assert text.endswith("\n\nHot.\n\nSources:\n  [hand] made up")


def test_the_table_lists_few_aliases() -> None:
    thor = DELIVERED["jetson-thor-t5000"]
    _, line = device_table([thor]).splitlines()
    more = len(thor.aliases) - 3
    assert line.endswith(f"jetson-thor, jetson-agx-thor, agx-thor, +{more}")
    assert all(alias in describe(thor) for alias in thor.aliases)


def test_a_device_with_two_engines() -> None:
    lines = describe(DELIVERED["jetson-agx-orin-64gb"]).splitlines()
    first = lines.index("engine         tensorrt 10.16, standard dialect; needs JetPack 7.2")
    assert "  precisions   fp16, int8, w8a8, int4" in lines[first : first + 4]
    assert "  cache        fp16" in lines[first : first + 4]
    assert "power mode     MAXN (default for plans)" in lines
    assert "power mode     MODE_30W" in lines
    (names,) = [line for line in lines if line.startswith("also called ")]
    assert "jetson-orin, jetson-agx-orin, agx-orin, agx-orin-64gb" in names


def test_machine_at_hand() -> None:
    text = describe(DELIVERED["cpu"])
    assert "memory         host, that of this machine\n" in text
    assert "also called" not in text
    assert "SM" not in text.splitlines()[1]


@pytest.mark.parametrize(
    ("status", "mark"),
    [
        ("given", "[hand]"),
        ("measured", "[hand, measured]"),
        ("derived", "[hand, derived]"),
        ("assumed", "[hand, ASSUMED]"),
        ("unverified", "[hand, UNVERIFIED]"),
    ],
)
def test_how_sure_a_figure_is(status: str, mark: str) -> None:
    figure = msgspec.convert({"value": 12.5, "source": "hand", "status": status}, Figure)
    mode = msgspec.structs.replace(TOASTER.power_modes[0], clock_ghz=figure)
    text = describe(msgspec.structs.replace(TOASTER, power_modes=(mode,)))
    assert f"  clock        12.5 GHz  {mark}\n" in text


@pytest.mark.parametrize("name", sorted(DELIVERED))
def test_delivered_profile(name: str) -> None:
    profile = DELIVERED[name]
    text = describe(profile)
    shown, _, sources = text.partition("\nSources:\n")
    assert len(sources.splitlines()) == len(profile.sources)
    for mode in profile.power_modes:
        assert f"power mode     {mode.name}" in shown
    for line in shown.splitlines():
        if line.startswith(FIGURES):
            cited = re.search(r"\[(\w+)(, [A-Za-z]+)?\]$", line)
            assert cited, line
            assert cited[1] in profile.sources
