"""Device profiles: facts about a device, read from TOML, each number with its source.

A profile is a file of this folder's `profiles/`, or one of the user's own in the folders that
`EDGELM_PROFILES` names (separated as in PATH), where `edge-devices calibrate` writes to. A user's
profile of the same name goes before ours.
"""

import difflib
import os
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec

from edgelm.devices.memory import available_bytes
from edgelm.errors import BadInput, UnknownName
from edgelm.precision import KvType

SCHEMA_VERSION = 1
ENVIRONMENT = "EDGELM_PROFILES"
_FOLDER = Path(__file__).with_name("profiles")

Status = Literal["given", "derived", "measured", "assumed", "unverified"]
Form = Literal["cpu", "jetson", "laptop", "desktop", "desktop-unified", "datacenter"]


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number and where it is from: `source` is a key of the profile's table of sources."""

    value: float
    source: str
    status: Status = "given"


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What there is, and what the system, the desktop and the display keep for themselves.

    `kind` host is the machine at hand: its size is asked of the machine when it is needed.
    """

    kind: Literal["shared", "dedicated", "host"]
    reserved_bytes: Figure
    bytes: Figure | None = None


class PowerMode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Speeds in one power mode; a device without modes has one, `default`.

    `dense_tflops` are dense matrix products (no sparsity) by arithmetic type with 16-bit or
    wider accumulation, GPU only.
    """

    name: str
    bandwidth_gb_s: Figure
    dense_tflops: dict[str, Figure]
    clock_ghz: Figure | None = None
    sm_count: Figure | None = None
    watts: Figure | None = None


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Coefficients of the cost model measured on the device itself with this engine.

    Shares of the read bandwidth and of the dense peak, by precision; the rest as in
    `edgelm.devices.cost.Coefficients`. `band` is the relative error not exceeded in 80% of cases.
    """

    bandwidth: dict[str, float]
    cache_bandwidth: dict[str, float]  # by type of the cache
    compute: dict[str, float]
    attention: float
    layer_us: float
    step_us: float
    prompt_layers: float
    band: float
    source: str


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to run a decoder on the device; the first of a profile is the default."""

    name: str
    dialect: str
    precisions: tuple[str, ...]
    kv: tuple[KvType, ...]
    runtime_bytes: Figure  # resident beside weights, cache and workspace
    source: str
    weight_copies: float = 1.0  # resident at the peak: a mapped file and a packed copy are two
    version: str = ""
    requires: str = ""
    measured: Measured | None = None


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """One device. `sm` is the CUDA compute capability times ten."""

    schema_version: int
    name: str
    title: str
    form: Form
    architecture: str
    memory: Memory
    power_mode: str
    power_modes: tuple[PowerMode, ...]
    engines: tuple[Engine, ...]
    default_context: int
    prefill_chunk: int
    sources: dict[str, str]
    aliases: tuple[str, ...] = ()
    sm: int | None = None
    l2_mb: Figure | None = None
    parts: tuple[str, ...] = ()
    jetson: str = ""  # `xavier`, `orin` or `thor`: the modules of jetpack.toml
    measured_tflops: dict[str, Figure] = {}
    notes: str = ""

    def __post_init__(self) -> None:
        _check(self)

    @cached_property
    def budget_bytes(self) -> int:
        """Memory that a deployment may take."""
        if self.memory.bytes is None:
            return int(available_bytes() - self.memory.reserved_bytes.value)
        return int(self.memory.bytes.value - self.memory.reserved_bytes.value)

    def mode(self, name: str | None = None) -> PowerMode:
        """A power mode by name; the profile's own where None.

        Raises:
            UnknownName: the device has no such mode.
        """
        wanted = name or self.power_mode
        for mode in self.power_modes:
            if mode.name == wanted:
                return mode
        known = ", ".join(mode.name for mode in self.power_modes)
        raise UnknownName(f"{self.name} has no power mode {wanted!r}; it has {known}")

    def engine(self, name: str | None = None) -> Engine:
        """An engine by name; the profile's first where None.

        Raises:
            UnknownName: the device has no such engine.
        """
        for engine in self.engines:
            if name is None or engine.name == name:
                return engine
        known = ", ".join(dict.fromkeys(engine.name for engine in self.engines))
        raise UnknownName(f"{self.name} has no engine {name!r}; it has {known}")

    @property
    def precisions(self) -> tuple[str, ...]:
        """What the default engine has."""
        return self.engines[0].precisions


def profile_paths() -> dict[str, Path]:
    """Every known profile by name, the user's own first."""
    folders = [Path(part) for part in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if part]
    paths: dict[str, Path] = {}
    for folder in [*folders, _FOLDER]:
        for path in sorted(folder.glob("*.toml")):
            paths.setdefault(path.stem, path)
    return dict(sorted(paths.items()))


def profile_names() -> list[str]:
    """Every known target."""
    return list(profile_paths())


def load_profiles() -> list[Profile]:
    """Every profile, by name."""
    return [read_profile(path) for path in profile_paths().values()]


def load_profile(name: str) -> Profile:
    """Read a profile by its name or one of its aliases.

    Raises:
        UnknownName: no such target; the message suggests the nearest.
        BadInput: the file is malformed; the message names file and field.
    """
    paths = profile_paths()
    if name in paths:
        return read_profile(paths[name])
    aliases = _aliases(paths)
    if name in aliases:
        return read_profile(paths[aliases[name]])
    known = [*paths, *aliases]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    near += [other for other in known if name and name.lower() in other and other not in near][:3]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UnknownName(
        f"unknown target {name!r}; {hint}`edge-devices list` prints the {len(paths)} known ones"
    )


def _aliases(paths: dict[str, Path]) -> dict[str, str]:
    class Named(msgspec.Struct):
        aliases: tuple[str, ...] = ()

    found: dict[str, str] = {}
    for name, path in paths.items():
        try:
            named = msgspec.toml.decode(path.read_bytes(), type=Named)
        except (OSError, msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError):
            continue  # it is reported when that profile itself is asked for
        found |= dict.fromkeys(named.aliases, name)
    return found


def read_profile(path: Path) -> Profile:
    """Read one profile file.

    Raises:
        BadInput: unreadable or malformed; the message names file, field and expectation.
    """
    try:
        profile = msgspec.toml.decode(path.read_bytes(), type=Profile)
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    if profile.name != path.stem:
        raise BadInput(f"{path}: name is {profile.name!r}, expected {path.stem!r} as the file")
    return profile


def _check(profile: Profile) -> None:
    """What types cannot say. Raises ValueError, which a decoder reports with the field."""
    if profile.schema_version != SCHEMA_VERSION:
        raise ValueError(
            f"schema_version {profile.schema_version}, expected {SCHEMA_VERSION}: "
            "written by another version of edgelm"
        )
    if not profile.engines:
        raise ValueError("engines is empty, expected at least one")
    modes = [mode.name for mode in profile.power_modes]
    if profile.power_mode not in modes:
        raise ValueError(f"power_mode {profile.power_mode!r} is none of its modes {modes}")
    if profile.memory.kind != "host" and profile.memory.bytes is None:
        raise ValueError(f"memory.bytes is missing, expected for {profile.memory.kind} memory")
    for where, figure in _figures(profile):
        if figure.source not in profile.sources:
            raise ValueError(f"{where}.source {figure.source!r} is not in the table [sources]")
        if not 0 <= figure.value < float("inf"):
            raise ValueError(f"{where}.value is {figure.value}, expected a number from 0 up")
    for mode in profile.power_modes:
        if mode.bandwidth_gb_s.value <= 0 or not mode.dense_tflops:
            raise ValueError(f"power mode {mode.name!r} needs a bandwidth and a dense peak")


def _figures(profile: Profile) -> list[tuple[str, Figure]]:
    found: list[tuple[str, Figure | None]] = [
        ("memory.bytes", profile.memory.bytes),
        ("memory.reserved_bytes", profile.memory.reserved_bytes),
        ("l2_mb", profile.l2_mb),
    ]
    for mode in profile.power_modes:
        where = f"power_modes[{mode.name}]"
        found += [
            (f"{where}.bandwidth_gb_s", mode.bandwidth_gb_s),
            (f"{where}.clock_ghz", mode.clock_ghz),
            (f"{where}.sm_count", mode.sm_count),
            (f"{where}.watts", mode.watts),
        ]
        found += [(f"{where}.dense_tflops.{key}", item) for key, item in mode.dense_tflops.items()]
    for engine in profile.engines:
        found.append((f"engines[{engine.name}].runtime_bytes", engine.runtime_bytes))
    found += [(f"measured_tflops.{key}", item) for key, item in profile.measured_tflops.items()]
    return [(where, figure) for where, figure in found if figure is not None]
