"""The target `this`: the profile of this machine, with its own memory and power mode.

A profile states a module's or a card's advertised memory. Variants with the same name have more
or less, firmware and error correction keep a part, and a container may use less still. Plans are
for a device's fastest power mode; a board may be in another, and a laptop limits its GPU.
"""

import math

from msgspec import structs

from edgelm.devices.detection.detect import detect
from edgelm.devices.detection.jetpack import jetpack_of
from edgelm.devices.detection.machine import DetectedGpu, Machine
from edgelm.devices.detection.nvidia import gpu_profile
from edgelm.devices.profile import Profile, load_profile
from edgelm.devices.profile_names import match_mode
from edgelm.devices.profile_tables import Engine, Figure
from edgelm.errors import BadInput, UnknownName

THIS = "this"
_SOURCE = "machine"
_SAME = 0.15  # sizes that differ by less are of one variant: firmware keeps up to 13%


def target_profile(name: str) -> Profile:
    """The profile of a target; `this` is this machine, with its own memory and power mode.

    Raises:
        UnknownName: no such target, or this machine is none that has a profile.
        BadInput: the profile is malformed, or the memory of this machine's GPU is not known.
    """
    if name.lower() != THIS:
        return load_profile(name)
    machine = detect()
    if machine.profile is None:
        why = next((it.why for it in machine.unread if it.what == "profile"), "")
        raise UnknownName(f"this machine has no profile: {why}")
    return fit_power_mode(fit_memory(load_profile(machine.profile), machine), machine)


def fit_power_mode(profile: Profile, machine: Machine) -> Profile:
    """A machine's profile, planned for the power mode that the machine is in.

    A GPU's mode is the one whose power is nearest to the limit in force, by their ratio.
    """
    modes = {mode.name: mode.watts.value for mode in profile.power_modes if mode.watts}
    gpu = gpu_of_profile(profile, machine)
    name = None
    if machine.jetson:
        names = [mode.name for mode in profile.power_modes]
        name = match_mode(machine.jetson.power_mode or "", names)
    elif gpu and gpu.power_limit_w and profile.power_mode in modes:
        limit = gpu.power_limit_w
        name = min(modes, key=lambda mode: abs(math.log(limit / modes[mode])))
    return structs.replace(profile, power_mode=name) if name else profile


def fit_memory(profile: Profile, machine: Machine) -> Profile:
    """A machine's profile with the memory that the machine has.

    Raises:
        BadInput: the memory of its GPU is not known.
    """
    if profile.memory.kind == "host" or profile.memory.bytes is None:
        return profile
    if profile.memory.kind == "shared":
        return _fit_shared(profile, machine)
    gpu = gpu_of_profile(profile, machine)
    if gpu is None or not gpu.memory_bytes:
        raise BadInput(
            f"the memory size of this machine's {gpu.name if gpu else 'GPU'} cannot be read; give "
            f"the target and the memory to use: --target {profile.name} --max-memory SIZE"
        )
    if _alike(gpu.memory_bytes, profile.memory.bytes.value):
        return profile
    return _with_memory(profile, gpu.memory_bytes, int(profile.memory.reserved_bytes.value))


def gpu_of_profile(profile: Profile, machine: Machine) -> DetectedGpu | None:
    """The GPU of a machine that its profile describes."""
    if profile.memory.kind == "shared":
        return machine.gpus[0] if machine.gpus else None
    own = [gpu for gpu in machine.gpus if gpu.memory_kind != "shared"]
    fitting = [gpu for gpu in own if gpu_profile(gpu, [profile.name], laptop=True)]
    return max(fitting, key=lambda gpu: gpu.memory_bytes or 0, default=None)


def engine_of_machine(profile: Profile, machine: Machine) -> Engine | None:
    """The engine of a Jetson's profile for the TensorRT that is installed, or that JetPack has.

    None if that TensorRT is older than all of them, or not known.
    """
    version = tensorrt_version(machine)
    if version is None:
        return None
    wanted = _numbers(version)
    fitting = [
        engine
        for engine in profile.engines
        if engine.name.startswith("tensorrt")
        and not engine.name.startswith("tensorrt-rtx")
        and _numbers(engine.version) <= wanted
    ]
    return max(fitting, key=lambda engine: _numbers(engine.version), default=None)


def tensorrt_version(machine: Machine) -> str | None:
    """The version of TensorRT that is installed, or otherwise that JetPack includes."""
    installed = [
        version
        for name, version in machine.packages.items()
        if name.startswith(("libnvinfer", "python3-libnvinfer"))
        or name in ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
    ]
    if installed:
        return max(installed, key=_numbers)
    release = jetpack_of(machine.jetson.l4t) if machine.jetson and machine.jetson.l4t else None
    return release.tensorrt if release else None


def _fit_shared(profile: Profile, machine: Machine) -> Profile:
    memory = profile.memory
    if memory.bytes is None:
        return profile
    physical = max((gpu.memory_bytes or 0 for gpu in machine.gpus), default=0)
    visible = machine.memory_bytes
    total = int(memory.bytes.value)
    advertised = int(2 ** math.ceil(math.log2(max(physical, visible))))
    if not _alike(advertised, total):
        total = advertised
    # Firmware keeps a part, and a container may be allowed less: neither is available.
    reserved = max(int(memory.reserved_bytes.value), total - visible)
    if (total, reserved) == (memory.bytes.value, memory.reserved_bytes.value):
        return profile
    return _with_memory(profile, total, reserved)


def _with_memory(profile: Profile, total: int, reserved: int) -> Profile:
    memory = structs.replace(
        profile.memory,
        bytes=Figure(total, _SOURCE, "measured"),
        reserved_bytes=Figure(reserved, _SOURCE, "measured"),
    )
    sources = profile.sources | {_SOURCE: "read on this machine"}
    return structs.replace(profile, memory=memory, sources=sources)


def _alike(first: float, second: float) -> bool:
    return abs(first - second) <= _SAME * second


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split("-")[0].split(".")
    return tuple(int(part) for part in parts[:2] if part.isdigit())
