"""Coefficients of the cost model: fitted to published measurements, or measured by the user.

`coefficients.toml` is written by `edge-devices fit`. A lookup goes from specific to general: device
and engine, then engine and chip, engine and architecture, engine, all. The range is wider for a
device without rows of its own.
"""

from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from edgelm.devices.planner.cost_model.cost import Coefficients
from edgelm.devices.profile import Profile
from edgelm.devices.profile_tables import Measured

_FILE = Path(__file__).with_name("coefficients.toml")

Level = Literal["device", "chip", "architecture", "engine", "all"]


class Entry(msgspec.Struct, frozen=True):
    """Fitted coefficients of one group of rows; empty names mean any."""

    level: Level
    coefficients: Coefficients
    engine: str = ""
    architecture: str = ""
    device: str = ""
    rows: int = 0
    chip: str = ""


def family(device: str) -> str:
    """The name that the fit uses: two configurations of the same hardware count as one."""
    return device.removesuffix("-super")


def chip_of(profile: Profile) -> str:
    """What a device shares with its relatives: a Jetson's series, or a card's architecture.

    Other devices that share memory with the CPU, such as GB10, are alone.
    """
    if profile.jetson:
        return profile.jetson
    return profile.name if profile.memory.kind == "shared" else profile.architecture


class Table(msgspec.Struct, frozen=True):
    """All entries; `stands_for` maps our engines to the closest published one."""

    fitted_on: str
    stands_for: dict[str, str]
    entries: tuple[Entry, ...]

    def find(self, engine: str, architecture: str, device: str, chip: str = "") -> Entry:
        """The most specific entry that matches."""
        published = self.stands_for.get(engine, engine)
        wanted = (
            ("device", published, "", "", family(device)),
            ("chip", published, "", chip, ""),
            ("architecture", published, architecture, "", ""),
            ("engine", published, "", "", ""),
            ("architecture", "", architecture, "", ""),
            ("all", "", "", "", ""),
        )
        for key in wanted:
            for one in self.entries:
                if (one.level, one.engine, one.architecture, one.chip, one.device) == key:
                    return one
        raise LookupError(f"{_FILE.name} has no entry for all")


@cache
def fitted() -> Table:
    """The built-in table."""
    return msgspec.toml.decode(_FILE.read_bytes(), type=Table)


def coefficients_for(profile: Profile, engine_name: str, precision: str, kv: str) -> Coefficients:
    """Coefficients of an engine on a device: measured there, or fitted to the closest rows."""
    engine = profile.engine(engine_name)
    if engine.measured is not None:
        return _measured(profile, engine.measured, precision, kv)
    chip = chip_of(profile)
    return fitted().find(engine.name, profile.architecture, profile.name, chip).coefficients


def _measured(profile: Profile, measured: Measured, precision: str, kv: str) -> Coefficients:
    def share(shares: dict[str, float], name: str = precision) -> float:
        # A precision that was not measured, such as `auto`, counts as the slowest one.
        return shares.get(name, min(shares.values()))

    band = (1 - measured.band, 1 + measured.band)
    return Coefficients(
        bandwidth=share(measured.bandwidth),
        cache_bandwidth=share(measured.cache_bandwidth, kv),
        compute=share(measured.compute),
        attention=measured.attention,
        layer_us=measured.layer_us,
        step_us=measured.step_us,
        prompt_layers=measured.prompt_layers,
        decode_band=band,
        prefill_band=band,
        source=profile.sources[measured.source],
    )
