"""Records of a machine, as far as it could be read."""

from typing import Literal

import msgspec

MemoryKind = Literal["shared", "dedicated"]


class Unread(msgspec.Struct, frozen=True):
    """A value that could not be read: the place that was tried, and the reason."""

    what: str
    where: str
    why: str


class Cpu(msgspec.Struct, frozen=True):
    """The processor. `usable` counts the threads that this process may run on."""

    name: str
    cores: int
    usable: int
    isa: tuple[str, ...] = ()


class DetectedGpu(msgspec.Struct, frozen=True):
    """One NVIDIA GPU. None is unknown; `sm` is the compute capability times ten (8.7 is 87).

    `memory_bytes` is its own memory, or with `memory_kind` shared the machine's. `power_limit_w`
    is the limit in force, `max_power_limit_w` the highest that may be set. With `mig` the GPU is
    divided, and the figures are those of the one part that this process may use.
    """

    name: str
    sm: int | None = None
    sm_count: int | None = None
    memory_bytes: int | None = None
    memory_kind: MemoryKind | None = None
    driver: str | None = None
    cuda: str | None = None
    power_limit_w: float | None = None
    max_clock_mhz: float | None = None
    default_power_limit_w: float | None = None
    max_power_limit_w: float | None = None
    mig: bool = False


class Jetson(msgspec.Struct, frozen=True):
    """A Jetson module, its software and its state. `power_modes` are all that nvpmodel lists."""

    model: str
    part: str | None = None  # such as p3767-0005
    soc: str | None = None  # such as tegra234
    l4t: str | None = None  # such as 36.4.3
    jetpack: str | None = None  # such as 6.2
    power_mode: str | None = None  # such as MAXN_SUPER
    power_mode_id: int | None = None
    gpu_clock_mhz: float | None = None
    gpu_max_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_modes: tuple[str, ...] = ()


class Machine(msgspec.Struct, frozen=True):
    """A machine: hardware, installed packages and device profile.

    `packages` are the versions of installed packages that edgelm uses. `profile` is a name for
    `load_profile`.
    """

    system: str  # such as Linux 5.15.148-tegra aarch64
    python: str
    memory_bytes: int
    available_bytes: int
    cpu: Cpu
    gpus: tuple[DetectedGpu, ...] = ()
    jetson: Jetson | None = None
    packages: dict[str, str] = {}
    profile: str | None = None
    unread: tuple[Unread, ...] = ()
