"""Identify this machine: Jetson module, GPUs, processor, memory and installed packages.

Nothing here needs root. A value that cannot be read is not an error: it is listed with the reason.
"""

import difflib
import platform
import re
from collections.abc import Collection, Iterable, Sequence

from msgspec import structs

from edgelm.devices.detection.chassis import is_laptop
from edgelm.devices.detection.cpu import read_cpu, read_memory
from edgelm.devices.detection.jetson import integrated_gpu, read_jetson
from edgelm.devices.detection.machine import DetectedGpu, Jetson, Machine, Unread
from edgelm.devices.detection.modules import jetson_profiles, unsupported
from edgelm.devices.detection.nvidia import UNREAD_GPU, gpu_profile, read_gpus
from edgelm.devices.detection.probes import Probes, reason
from edgelm.devices.profile import profile_names

_PACKAGES = (
    "edgelm",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
    "cuda-python",
    "torch",
    "nvidia-ml-py",
)
_APT_TENSORRT = r"(?m)^(libnvinfer\d+|python3-libnvinfer) (\d[\d.]*)"
_OTHER_WAYS = (
    "plan with --target and the name of a similar device (edge-devices list) and --max-memory, or "
    "write a profile: docs/how-to/devices.md"
)
_HERE = Probes()


def detect(probes: Probes = _HERE, known: Collection[str] | None = None) -> Machine:
    """Identify a machine; `known` are the profiles to choose from, by default all."""
    jetson, of_jetson = read_jetson(probes)
    cpu, of_cpu = read_cpu(probes)
    memory, of_memory = read_memory(probes)
    gpus, of_gpus = read_gpus(probes, memory.physical_bytes)
    packages, of_packages = _read_packages(probes, jetson)
    known = profile_names() if known is None else known
    if jetson:
        # The module identifies its GPU; without NVML only the driver's version is missing.
        of_gpus = [_of_driver(it) for it in of_gpus]
        gpus = integrated_gpu(jetson, memory.physical_bytes, gpus)
        fitting = jetson_profiles(jetson, memory.physical_bytes)
        profile = next((name for name in fitting if name in known), None)
    elif gpus or of_gpus:  # a GPU that cannot be read still exists
        profile = _of_largest(gpus, known, laptop=is_laptop(probes))
    else:
        profile = "cpu"
    unread = [*of_jetson, *of_cpu, *of_memory, *of_gpus, *of_packages]
    if profile is None:
        unread.append(_no_profile(jetson, gpus, known))
    return Machine(
        system=probes.system(),
        python=platform.python_version(),
        memory_bytes=memory.total_bytes,
        available_bytes=memory.available_bytes,
        cpu=cpu,
        gpus=tuple(gpus),
        jetson=jetson,
        packages=packages,
        profile=profile,
        unread=tuple(unread),
    )


def describe(machine: Machine) -> str:
    """The machine as text: a row for each fact, then what could not be read and why."""
    packages = _join(f"{name} {version}" for name, version in machine.packages.items())
    rows = [("system", f"{machine.system}, Python {machine.python}")]
    if machine.jetson:
        rows += _jetson_rows(machine.jetson)
    rows += [("GPU", _gpu_line(gpu)) for gpu in machine.gpus]
    rows += [
        ("processor", _cpu_line(machine)),
        ("memory", _memory_line(machine)),
        ("packages", packages or "none"),
        ("profile", machine.profile or "none"),
    ]
    lines = _aligned(rows)
    if machine.unread:
        lines += ["", "not read:"]
        lines += _aligned([(f"  {it.what}", f"{it.where}: {it.why}") for it in machine.unread])
    return "\n".join(lines)


def _of_largest(gpus: Sequence[DetectedGpu], known: Collection[str], *, laptop: bool) -> str | None:
    """The profile of the GPU with the most memory, of those that have one."""
    ranked = sorted(gpus, key=lambda gpu: gpu.memory_bytes or 0, reverse=True)
    profiles = (gpu_profile(gpu, known, laptop=laptop) for gpu in ranked)
    return next(filter(None, profiles), None)


def _read_packages(probes: Probes, jetson: Jetson | None) -> tuple[dict[str, str], list[Unread]]:
    """Installed distributions, and on a Jetson JetPack's TensorRT."""
    versions = {name: probes.version(name) for name in _PACKAGES}
    packages = {name: version for name, version in versions.items() if version}
    if not jetson:
        return packages, []
    try:
        listed = probes.run(["dpkg-query", "-W", "-f=${Package} ${Version}\n", "*libnvinfer*"])
    except FileNotFoundError as error:
        return packages, [Unread("TensorRT of JetPack", "dpkg-query", reason(error))]
    except OSError:  # none is installed
        return packages, []
    return packages | dict(re.findall(_APT_TENSORRT, listed)), []


def _of_driver(unread: Unread) -> Unread:
    return structs.replace(unread, what="GPU driver") if unread.what == UNREAD_GPU else unread


def _no_profile(
    jetson: Jetson | None, gpus: Sequence[DetectedGpu], known: Collection[str]
) -> Unread:
    where = "devices/profiles"
    if jetson and (why := unsupported(jetson)):
        return Unread("profile", where, f"edgelm does not run on it: {why}")
    if not gpus:
        return Unread("profile", where, f"the GPU could not be read; {_OTHER_WAYS}")
    name = jetson.model if jetson else max(gpus, key=lambda gpu: gpu.memory_bytes or 0).name
    words = "-".join(name.lower().split())
    near = difflib.get_close_matches(words, known, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    return Unread("profile", where, f"none matches {name!r}{hint}; {_OTHER_WAYS}")


def _jetson_rows(jetson: Jetson) -> list[tuple[str, str]]:
    mode = jetson.power_mode or "unknown"
    if jetson.power_modes:
        mode += f" (of {', '.join(jetson.power_modes)})"
    clocks = [
        f"GPU {jetson.gpu_clock_mhz:.0f} MHz" if jetson.gpu_clock_mhz else None,
        f"memory {jetson.memory_clock_mhz:.0f} MHz" if jetson.memory_clock_mhz else None,
    ]
    return [
        ("Jetson", _join([jetson.model, jetson.part, jetson.soc])),
        ("JetPack", f"{jetson.jetpack or 'unknown'}, Jetson Linux {jetson.l4t or 'unknown'}"),
        ("power mode", mode),
        ("clocks now", _join(clocks) or "unknown"),
    ]


def _gpu_line(gpu: DetectedGpu) -> str:
    return _join(
        [
            gpu.name,
            f"sm_{gpu.sm}" if gpu.sm else None,
            f"{gpu.sm_count} SMs" if gpu.sm_count else None,
            f"{_gib(gpu.memory_bytes)} {gpu.memory_kind}" if gpu.memory_bytes else None,
            f"up to {gpu.max_clock_mhz:.0f} MHz" if gpu.max_clock_mhz else None,
            f"up to {gpu.power_limit_w:.0f} W" if gpu.power_limit_w else None,
            f"driver {gpu.driver}" if gpu.driver else None,
            f"CUDA {gpu.cuda}" if gpu.cuda else None,
        ]
    )


def _cpu_line(machine: Machine) -> str:
    cpu = machine.cpu
    count = f"{cpu.cores} cores, {cpu.usable} threads usable"
    return _join([cpu.name, count, " ".join(cpu.isa)])


def _memory_line(machine: Machine) -> str:
    return f"{_gib(machine.memory_bytes)}, {_gib(machine.available_bytes)} available"


def _gib(count: int) -> str:
    # Binary, as memory is sold: the planner's decimal gigabytes would show a 64 GB module as 66.
    return f"{count / 2**30:.1f} GiB"


def _join(parts: Iterable[str | None]) -> str:
    return ", ".join(part for part in parts if part)


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]
