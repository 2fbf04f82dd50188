"""Device profiles: facts about a device, read from TOML, each number with its source there."""

import difflib
import tomllib
from pathlib import Path

import msgspec

from edgelm.devices.memory import available_bytes
from edgelm.errors import BadInput, UnknownName

_FOLDER = Path(__file__).with_name("profiles")


class Efficiency(msgspec.Struct, frozen=True):
    """How much of a peak real runs reach."""

    bandwidth: float
    prefill: float
    layer_overhead_us: float


class Profile(msgspec.Struct, frozen=True):
    """One device.

    `memory_bytes` 0 means the machine at hand: what is available when the plan is made.
    `bandwidth_gb_s` and `dense_gflops` (by arithmetic type) are peaks.
    """

    name: str
    description: str
    engine: str
    dialect: str
    precisions: tuple[str, ...]
    kv: tuple[str, ...]
    memory_bytes: int
    usable_fraction: float
    bandwidth_gb_s: float
    dense_gflops: dict[str, float]
    runtime_bytes: int
    default_context: int
    prefill_chunk: int
    efficiency: Efficiency

    @property
    def budget_bytes(self) -> int:
        """Memory that a model may take."""
        return int((self.memory_bytes or available_bytes()) * self.usable_fraction)


def profile_names() -> list[str]:
    """Every known target."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_profile(name: str) -> Profile:
    """Read a profile by name.

    Raises:
        UnknownName: no such target; the message suggests the nearest.
        BadInput: the file is malformed; the message names file and field.
    """
    path = _FOLDER / f"{name}.toml"
    if name not in profile_names():
        near = difflib.get_close_matches(name, profile_names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UnknownName(
            f"unknown target {name!r}; {hint}known: {', '.join(profile_names())} "
            "(edge-export --list-targets)"
        )
    return read_profile(path)


def read_profile(path: Path) -> Profile:
    """Read one profile file."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Profile)
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None
