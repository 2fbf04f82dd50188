"""Device profiles: facts about a device, read from TOML, each number with its source.

A profile is a file of this folder's `profiles/`, or one of the user's own in the folders that
`EDGELM_PROFILES` names (separated as in PATH), where `edge-devices calibrate` writes to. A user's
profile replaces the built-in one of the same name.
"""

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import msgspec

from edgelm.bundle.roles import DIALECTS
from edgelm.devices.detection.memory import available_bytes
from edgelm.devices.kernels import KERNELS
from edgelm.devices.profile_names import match_device, match_mode, near_names, without_memory
from edgelm.devices.profile_tables import Engine, Figure, Form, Memory, PowerMode
from edgelm.devices.tensorrt_versions import engine_family
from edgelm.errors import BadInput, UnknownName
from edgelm.files.toml_files import convert_toml, read_toml
from edgelm.quantize.precision import KV_BYTES, PRECISIONS

SCHEMA_VERSION = 1
ENVIRONMENT = "EDGELM_PROFILES"
_MIN_CONTEXT = 2
_MAX_TOKENS = 2**31
_MAX_COPIES = 100
# No device lies beyond these, and times computed from such values would not be finite.
_MIN_VALUE, _MAX_VALUE = 1e-9, 1e18
_FOLDER = Path(__file__).with_name("profiles")


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """One device.

    schema_version: 1
    name: the target's name, as the file's
    title: name to display
    form: kind of machine
    architecture: of the GPU or CPU, e.g. `ampere`
    memory: size and kind
    power_mode: name of the mode that plans assume
    power_modes: speeds in each mode
    engines: what can run models on it
    default_context: tokens of the cache where `--context` is not given
    prefill_chunk: tokens of a prompt that are processed in one run
    sources: where the figures are from, by key
    aliases: other names of the target
    sm: CUDA compute capability times ten
    l2_mb: size of the GPU's second-level cache
    parts: part numbers of the module, by which it is detected
    jetson: `xavier`, `orin` or `thor`: the family of its JetPack
    measured_tflops: rates of matrix products that others measured; not used by plans
    notes: comments
    """

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
    jetson: str = ""
    measured_tflops: dict[str, Figure] = {}
    notes: str = ""

    def __post_init__(self) -> None:
        _check(self)

    @cached_property
    def budget_bytes(self) -> int:
        """Memory available to a deployment."""
        if self.memory.bytes is None:
            return int(available_bytes() - self.memory.reserved_bytes.value)
        return int(self.memory.bytes.value - self.memory.reserved_bytes.value)

    def mode(self, name: str | None = None) -> PowerMode:
        """A power mode by name; the profile's own where None or `default`.

        Case, and a leading `MODE_`, make no difference.

        Raises:
            UnknownName: the device has no such mode.
        """
        names = [mode.name for mode in self.power_modes]
        found = match_mode(name, names) if name else self.power_mode
        if found is None and name and name.lower() == "default":
            found = self.power_mode
        for mode in self.power_modes:
            if mode.name == found:
                return mode
        raise UnknownName(f"{self.name} has no power mode {name!r}; it has {', '.join(names)}")

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
        """The precisions of the default engine."""
        return self.engines[0].precisions


def profile_paths() -> dict[str, Path]:
    """The file of every known profile by name; the user's own replace built-in ones."""
    folders = [Path(part) for part in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if part]
    paths: dict[str, Path] = {}
    for folder in [*folders, _FOLDER]:
        for path in sorted(folder.glob("*.toml")):
            paths.setdefault(path.stem, path)
    return paths


def profile_names() -> list[str]:
    """Every known target."""
    return sorted(profile_paths())


def load_profiles() -> list[Profile]:
    """Every profile, by name."""
    return [read_profile(path) for _, path in sorted(profile_paths().items())]


def load_profile(name: str) -> Profile:
    """Read a profile by its name or one of its aliases, in any case and spelling.

    Raises:
        UnknownName: no such target; the message suggests the nearest.
        BadInput: the file is malformed; the message names file and field.
    """
    paths = profile_paths()
    found = canonical_name(name)
    if found is not None:
        return read_profile(paths[found])
    near = near_names(name, [*paths, *_aliases(paths)])
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UnknownName(
        f"unknown target {name!r}; {hint}`edge-devices list` prints the {len(paths)} known ones"
    )


def canonical_name(name: str, *, with_aliases: bool = True) -> str | None:
    """The name of the profile that a target, an alias or a driver's name stands for, if any.

    A memory size is dropped from the name if the profile without it has that much memory.
    """
    paths = profile_paths()
    aliases = _aliases(paths) if with_aliases and name not in paths else {}
    found = match_device(name, paths, aliases)
    if found is None and (shorter := without_memory(name)):
        found = match_device(shorter[0], paths, aliases)
        if found and not _has_memory(paths[found], shorter[1]):
            return None
    return found


def _has_memory(path: Path, size_gb: int) -> bool:
    memory = read_profile(path).memory.bytes
    return memory is not None and round(memory.value / 2**30) == size_gb


def _aliases(paths: dict[str, Path]) -> dict[str, str]:
    class Named(msgspec.Struct):
        aliases: tuple[str, ...] = ()

    found: dict[str, str] = {}
    for name, path in paths.items():  # the user's own come first and take precedence
        try:
            named = convert_toml(read_toml(path), Named, path)
        except (OSError, BadInput):
            continue  # reported when that profile itself is requested
        found = dict.fromkeys(named.aliases, name) | found
    return found


class _Version(msgspec.Struct):
    schema_version: int


def read_profile(path: Path) -> Profile:
    """Read one profile file.

    Raises:
        BadInput: unreadable or malformed; the message names file, field and expectation.
    """
    try:
        values = read_toml(path)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    # First, since a newer file also differs in other ways.
    written = convert_toml(values, _Version, path).schema_version
    if written != SCHEMA_VERSION:
        raise BadInput(
            f"{path}: schema_version {written}, expected {SCHEMA_VERSION}: "
            "the file is for another version of edgelm"
        )
    profile = convert_toml(values, Profile, path)
    if profile.name != path.stem:
        raise BadInput(f"{path}: name is {profile.name!r}, expected {path.stem!r} as the file")
    return profile


def _check(profile: Profile) -> None:
    """Raise ValueError for the first error; the decoder adds the name of the file."""
    if profile.schema_version != SCHEMA_VERSION:
        raise ValueError(f"schema_version {profile.schema_version}, expected {SCHEMA_VERSION}")
    if not profile.engines:
        raise ValueError("engines is empty, expected at least one")
    modes = [mode.name for mode in profile.power_modes]
    if profile.power_mode not in modes:
        raise ValueError(f"power_mode is {profile.power_mode!r}, expected one of {modes}")
    if profile.memory.kind != "host" and profile.memory.bytes is None:
        raise ValueError(f"memory.bytes is missing; {profile.memory.kind} memory needs it")
    if profile.default_context < _MIN_CONTEXT or profile.prefill_chunk < 1:
        raise ValueError(
            f"default_context {profile.default_context} and prefill_chunk "
            f"{profile.prefill_chunk}: expected at least {_MIN_CONTEXT} and 1"
        )
    if max(profile.default_context, profile.prefill_chunk) > _MAX_TOKENS:
        raise ValueError(
            f"default_context {profile.default_context} and prefill_chunk "
            f"{profile.prefill_chunk}: expected at most {_MAX_TOKENS}"
        )
    for where, figure in _figures(profile):
        _source(profile, where, figure.source)
        if not 0 <= figure.value <= _MAX_VALUE:
            raise ValueError(
                f"{where}.value is {figure.value}, expected a number from 0 up to {_MAX_VALUE:g}"
            )
    for mode in profile.power_modes:
        _check_mode(mode)
    for engine in profile.engines:
        _check_engine(profile, engine)


def _source(profile: Profile, where: str, source: str) -> None:
    if source not in profile.sources:
        raise ValueError(f"{where}.source {source!r} is not in the table [sources]")


def _check_mode(mode: PowerMode) -> None:
    peaks = [figure.value for figure in mode.dense_tflops.values()]
    optional = (mode.measured_gb_s, mode.clock_ghz, mode.sm_count)
    counts = [figure.value for figure in optional if figure is not None]
    if min([mode.bandwidth_gb_s.value, *counts, *peaks]) < _MIN_VALUE or not peaks:
        raise ValueError(
            f"power mode {mode.name!r} needs a bandwidth and dense peaks, all above zero, "
            "as are measured bandwidth, clock and multiprocessors"
        )


def _check_engine(profile: Profile, engine: Engine) -> None:
    where = f"engines[{engine.name}]"
    _source(profile, where, engine.source)
    if engine_family(engine.name) not in KERNELS:
        raise ValueError(f"{where}.name: unknown engine; known: {', '.join(KERNELS)}")
    if engine.dialect not in DIALECTS:
        known = ", ".join(DIALECTS)
        raise ValueError(f"{where}.dialect is {engine.dialect!r}; known: {known}")
    if not engine.kv or not engine.precisions:
        raise ValueError(f"{where} needs at least one precision and one kv")
    if not 1 <= engine.weight_copies <= _MAX_COPIES:
        raise ValueError(
            f"{where}.weight_copies is {engine.weight_copies}, expected 1 to {_MAX_COPIES}"
        )
    for name in engine.precisions:
        if name not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"{where}.precisions has {name!r}; known: {known}")
    if engine.measured is None:
        return
    measured = engine.measured
    _source(profile, f"{where}.measured", measured.source)
    tables = {
        "bandwidth": (measured.bandwidth, engine.precisions),
        "compute": (measured.compute, engine.precisions),
        "cache_bandwidth": (measured.cache_bandwidth, tuple(KV_BYTES)),
    }
    for name, (shares, keys) in tables.items():
        if not shares or not _positive(shares.values()) or not set(shares) <= set(keys):
            raise ValueError(
                f"{where}.measured.{name} is {shares}, expected shares above zero by "
                f"{', '.join(keys)}"
            )
    if not 0 < measured.band < 1:
        raise ValueError(f"{where}.measured.band is {measured.band}, expected between 0 and 1")
    costs = (measured.layer_us, measured.step_us, measured.prompt_layers)
    if not all(0 <= cost <= _MAX_VALUE for cost in costs):
        raise ValueError(f"{where}.measured has the costs {costs}, expected numbers of at least 0")
    if not _positive([measured.attention]):
        raise ValueError(f"{where}.measured.attention is {measured.attention}, expected above zero")


def _positive(values: Iterable[float]) -> bool:
    return all(_MIN_VALUE <= value <= _MAX_VALUE for value in values)


def _figures(profile: Profile) -> Iterator[tuple[str, Figure]]:
    if profile.memory.bytes is not None:
        yield "memory.bytes", profile.memory.bytes
    yield "memory.reserved_bytes", profile.memory.reserved_bytes
    if profile.l2_mb is not None:
        yield "l2_mb", profile.l2_mb
    for mode in profile.power_modes:
        where = f"power_modes[{mode.name}]"
        for name in ("bandwidth_gb_s", "measured_gb_s", "clock_ghz", "sm_count", "watts"):
            figure = getattr(mode, name)
            if figure is not None:
                yield f"{where}.{name}", figure
        for name, figure in mode.dense_tflops.items():
            yield f"{where}.dense_tflops.{name}", figure
    for engine in profile.engines:
        yield f"engines[{engine.name}].runtime_bytes", engine.runtime_bytes
    for name, figure in profile.measured_tflops.items():
        yield f"measured_tflops.{name}", figure
