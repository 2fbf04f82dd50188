"""Look up the speeds of a device by its name in a published table."""

import re
from functools import cache
from pathlib import Path

import msgspec

from edgelm.devices.planner.cost_model.coefficients import chip_of, family
from edgelm.devices.profile import Profile, canonical_name, load_profile, profile_names
from edgelm.devices.profile_tables import Figure, PowerMode

_FILE = Path(__file__).with_name("cards.toml")
# `not MAXN` names a mode that a row was not measured in.
_NEGATED = re.compile(
    r"\b(?:NOT(?: IN)?|NO|WITHOUT|INSTEAD OF|RATHER THAN) +(?:MAXN_SUPER|MAXN|\d+W)"
)
# `nvpmodel -m 0`, and `nvpmodel 0`: the first mode of the configuration that is installed.
_FIRST_MODE = re.compile(r"\bNVPMODEL +(?:-M *)?0\b")


class Hardware(msgspec.Struct, frozen=True):
    """Speeds of a device in one power mode. Validation leaves out a whole `family`.

    `chip` is what several devices share: the series of a Jetson, or all cards of an architecture.
    """

    name: str
    architecture: str
    mode: PowerMode
    memory_bytes: float
    shared: bool
    chip: str = ""

    @property
    def family(self) -> str:
        return family(self.name)


class _Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    matches: tuple[str, ...]
    profile: str


class _Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    matches: tuple[str, ...]
    architecture: str
    bandwidth_gb_s: float
    memory_gb: float
    sm_count: float
    clock_ghz: float
    fp16_tflops: float


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device: tuple[_Device, ...]
    card: tuple[_Card, ...]


@cache
def _file() -> _File:
    return msgspec.toml.decode(_FILE.read_bytes(), type=_File)


@cache
def hardware_named(name: str, power_mode: str) -> Hardware | None:
    """The device of a published row in the power mode that the row states; None if unknown.

    Names of profiles and spellings of them are tried before the table of other names.
    """
    lowered = name.strip().lower()
    # An alias says which configuration we plan for; a row of a plain Orin Nano is not of a Super.
    profile = canonical_name(lowered, with_aliases=False)
    if profile and profile != "cpu":
        return _of_profile(profile, power_mode)
    for device in _file().device:
        if _matches(device.matches, lowered):
            return _of_profile(device.profile, power_mode)
    for card in _file().card:
        if _matches(card.matches, lowered):
            return _of_card(card)
    return None


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _of_profile(name: str, stated: str) -> Hardware:
    """A profile in the power mode that a text states (`30W` is MODE_30W); by default the fastest.

    A mode that only the Super configuration of a module has selects that configuration, and so
    does mode 0 if no other is named: it is what current JetPacks install. Its prompts show it:
    in rows of TensorRT-Edge-LLM, an Orin NX in mode 0 is 1.85 times as fast as an Orin Nano at
    0.625 GHz, which is the Super configuration's 1.173 GHz (1.88) and not 0.918 (1.47).
    """
    text = _NEGATED.sub(" ", stated.upper())
    profiles = [load_profile(name)]
    if f"{name}-super" in profile_names():
        profiles.append(load_profile(f"{name}-super"))
    for word in re.findall(r"MAXN_SUPER|MAXN|\d+W", text):
        for spelling in (word, f"MODE_{word}", f"{word}_SUPER"):
            for profile in profiles:
                for mode in profile.power_modes:
                    if mode.name == spelling:
                        return _hardware(profile, mode)
    if _FIRST_MODE.search(text):  # profiles list modes in nvpmodel's order
        return _hardware(profiles[-1], profiles[-1].power_modes[0])
    return _hardware(profiles[0], profiles[0].mode())


def _hardware(profile: Profile, mode: PowerMode) -> Hardware:
    size = profile.memory.bytes.value if profile.memory.bytes else 0.0
    shared = profile.memory.kind == "shared"
    return Hardware(profile.name, profile.architecture, mode, size, shared, chip_of(profile))


def _of_card(card: _Card) -> Hardware:
    def figure(value: float) -> Figure:
        return Figure(value, "specification", "unverified")

    mode = PowerMode(
        name="default",
        bandwidth_gb_s=figure(card.bandwidth_gb_s),
        dense_tflops={"fp16": figure(card.fp16_tflops)},
        clock_ghz=figure(card.clock_ghz),
        sm_count=figure(card.sm_count),
    )
    size = card.memory_gb * 2**30
    return Hardware(card.name, card.architecture, mode, size, shared=False, chip=card.architecture)
