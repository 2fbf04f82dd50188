"""GPUs as NVIDIA's management library (NVML) reports them.

"Not Supported" is an answer, not a failure: the GPU has no such figure. For memory it means that
the GPU shares the machine's memory, as GB10 and the Jetsons do.
"""

import contextlib
import math
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from edgelm.devices.detection.machine import DetectedGpu, MemoryKind, Unread
from edgelm.devices.detection.probes import Probes, reason
from edgelm.devices.profile_names import name_words

UNREAD_GPU = "NVIDIA GPU"  # the entry for a GPU that exists but cannot be read

# Compute capabilities of GPUs that have no memory of their own: TX1, TX2, Xavier, Orin, Thor
# (10.1 before CUDA 13) and GB10. Some of their drivers report the machine's memory.
_INTEGRATED = frozenset({53, 62, 72, 87, 101, 110, 121})
# Compute capabilities of GPUs that always have memory of their own.
_DEDICATED = frozenset({60, 61, 70, 75, 80, 86, 89, 90, 100, 103, 120})
# FP32 lanes of a multiprocessor: 64 in Volta, Turing and GA100, 128 in everything newer.
_CORES_OF_SM = {70: 64, 72: 64, 75: 64, 80: 64}

_SIGNS = ("/proc/driver/nvidia", "/dev/nvidia0", "/usr/lib/wsl/lib/libnvidia-ml.so.1")
_PCI_VENDOR = "0x10de"
_PCI_DISPLAY = "0x03"  # the first byte of the class: display controllers

_SAYS_LITTLE = re.compile(r"dgx|spark|hbm\d\w?|mig|\d+[cg]\.\d+gb.*")
_NO_MEMORY = (
    "this is how a part of a divided GPU (MIG) looks from a container: `nvidia-smi -L` names the "
    "part with its size, which --max-memory takes"
)
_SIZE = re.compile(r"\d+gb")
_MIG_ENABLED = 1


def read_gpus(probes: Probes, memory_bytes: int) -> tuple[list[DetectedGpu], list[Unread]]:
    """The GPUs; those without own memory share `memory_bytes`.

    Both lists are empty on a machine without signs of an NVIDIA GPU.
    """
    try:
        nvml = probes.pynvml()
    except ImportError:
        return [], _complaint(probes, "needs the package nvidia-ml-py: pip install 'edgelm[nvml]'")
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError, OSError) as error:
        return [], _complaint(probes, reason(error))
    try:
        reader = _Reader(nvml, [])
        gpus = reader.gpus(memory_bytes)
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    if not gpus and not reader.unread:
        return [], _complaint(probes, "lists no GPU")
    return gpus, reader.unread


def gpu_profile(gpu: DetectedGpu, known: Collection[str], *, laptop: bool = False) -> str | None:
    """The profile whose name matches the GPU's, the most specific one; None if none matches.

    It contains all words of the GPU's name, and may add what follows from it, such as its memory,
    or that it is built into a laptop. A size in the GPU's name is dropped if nothing fits with it.

    >>> gpu = DetectedGpu("NVIDIA GeForce RTX 4060 Laptop GPU")
    >>> gpu_profile(gpu, ["rtx-4060", "rtx-4060-laptop"])
    'rtx-4060-laptop'
    """
    named = _words(gpu.name)
    # NVML leaves out the form of an SXM module: "NVIDIA H200", but "NVIDIA H200 NVL".
    implied = {"sxm"}
    if gpu.memory_bytes:
        implied.add(f"{math.ceil(gpu.memory_bytes / 2**30)}gb")
    if laptop:
        implied.add("laptop")
    without_size = {word for word in named if not _SIZE.fullmatch(word)}
    for wanted in (named, without_size):
        fitting = [name for name in known if wanted <= _words(name) <= wanted | implied]
        if wanted and fitting:
            return max(fitting, key=lambda name: len(_words(name)))
    return None


def _words(name: str) -> set[str]:
    words = {word for word in name_words(name) if not _SAYS_LITTLE.fullmatch(word)}
    # "GeForce RTX 2070 with Max-Q Design": Turing's laptop GPUs.
    return words - {"maxq"} | {"laptop"} if "maxq" in words else words


@dataclass
class _Reader:
    """An initialized NVML, and the values that it could not read."""

    nvml: Any
    unread: list[Unread]

    def gpus(self, memory_bytes: int) -> list[DetectedGpu]:
        driver = self.ask("GPU driver", "nvmlSystemGetDriverVersion")
        cuda = self.ask("CUDA of the driver", "nvmlSystemGetCudaDriverVersion_v2")
        found = []
        for index in range(self.ask("GPUs", "nvmlDeviceGetCount") or 0):
            handle = self.ask(f"GPU {index}", "nvmlDeviceGetHandleByIndex", index)
            if handle is not None:
                found.append(self._gpu(handle, memory_bytes, _text(driver), _cuda(cuda)))
        return found

    def _gpu(
        self, handle: Any, machine_bytes: int, driver: str | None, cuda: str | None
    ) -> DetectedGpu:
        name = _text(self.ask("GPU name", "nvmlDeviceGetName", handle)) or "NVIDIA GPU"
        capability = self.ask(f"SM of {name}", "nvmlDeviceGetCudaComputeCapability", handle)
        sm = 10 * capability[0] + capability[1] if capability else None
        cores = self.ask(f"SMs of {name}", "nvmlDeviceGetNumGpuCores", handle)
        limit_mw = self.ask(f"power limit of {name}", "nvmlDeviceGetEnforcedPowerLimit", handle)
        default_mw = self._try("nvmlDeviceGetPowerManagementDefaultLimit", handle)
        limits_mw = self._try("nvmlDeviceGetPowerManagementLimitConstraints", handle)
        part = self._part(handle)
        memory_bytes, kind = self._memory(name, handle, sm, machine_bytes, part)
        hidden = any(it.what == f"memory of {name}" and _NO_MEMORY in it.why for it in self.unread)
        return DetectedGpu(
            name=name,
            sm=sm,
            sm_count=None if hidden else self._sm_count(cores, sm, part),
            memory_bytes=memory_bytes,
            memory_kind=kind,
            driver=driver,
            cuda=cuda,
            power_limit_w=limit_mw / 1e3 if limit_mw else None,
            default_power_limit_w=default_mw / 1e3 if default_mw else None,
            max_power_limit_w=limits_mw[1] / 1e3 if limits_mw else None,
            max_clock_mhz=self.ask(
                f"highest clock of {name}",
                "nvmlDeviceGetMaxClockInfo",
                handle,
                self.nvml.NVML_CLOCK_SM,
            ),
            mig=hidden or self._is_divided(handle),
        )

    def _is_divided(self, handle: Any) -> bool:
        mode = self._try("nvmlDeviceGetMigMode", handle)
        return bool(mode) and mode[0] == _MIG_ENABLED

    def _part(self, handle: Any) -> Any:
        """The handle of the first part of a divided GPU (MIG) that this process sees, if any."""
        if not self._is_divided(handle):
            return None
        for index in range(self._try("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            if part := self._try("nvmlDeviceGetMigDeviceHandleByIndex", handle, index):
                return part
        return None

    def _sm_count(self, cores: int | None, sm: int | None, part: Any) -> int | None:
        if part is not None:
            attributes = self._try("nvmlDeviceGetAttributes_v2", part)
            return getattr(attributes, "multiprocessorCount", None)
        return cores // _CORES_OF_SM.get(sm, 128) if cores and sm else None

    def _memory(
        self, name: str, handle: Any, sm: int | None, machine_bytes: int, part: Any
    ) -> tuple[int | None, MemoryKind | None]:
        if sm in _INTEGRATED:
            return machine_bytes, "shared"
        before = len(self.unread)
        own = handle if part is None else part
        info = self.ask(f"memory of {name}", "nvmlDeviceGetMemoryInfo", own)
        if info is not None:
            return info.total, "dedicated"
        if len(self.unread) > before:
            failed = self.unread.pop()
            if "permission" in failed.why.lower():
                failed = Unread(failed.what, failed.where, f"{failed.why}; {_NO_MEMORY}")
            self.unread.append(failed)
            return None, None
        if sm in _DEDICATED:
            self.unread.append(Unread(f"memory of {name}", "NVML", f"not reported; {_NO_MEMORY}"))
            return None, None
        return machine_bytes, "shared"

    def _try(self, function: str, *arguments: Any) -> Any:
        """The function's answer; None if there is none, which is no reason for an entry."""
        with contextlib.suppress(self.nvml.NVMLError, AttributeError):
            return getattr(self.nvml, function)(*arguments)
        return None

    def ask(self, what: str, function: str, *arguments: Any) -> Any:
        """The function's answer; None if not supported, or with an entry if it failed."""
        try:
            return getattr(self.nvml, function)(*arguments)
        except self.nvml.NVMLError_NotSupported:
            return None
        except (self.nvml.NVMLError, AttributeError) as error:
            self.unread.append(Unread(what, f"NVML {function}", reason(error)))
            return None


def _text(value: str | bytes | None) -> str | None:
    # Older bindings return bytes.
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _cuda(version: int | None) -> str | None:
    """A version from NVML's number, 1000 × major + 10 × minor."""
    return f"{version // 1000}.{version % 1000 // 10}" if version else None


def _complaint(probes: Probes, why: str) -> list[Unread]:
    return [Unread(UNREAD_GPU, "NVML", why)] if _shows_a_gpu(probes) else []


def _shows_a_gpu(probes: Probes) -> bool:
    if any(os.path.exists(probes.path(sign)) for sign in _SIGNS):
        return True
    for vendor in probes.glob("/sys/bus/pci/devices/*/vendor"):
        with contextlib.suppress(OSError):
            if vendor.read_text().strip() == _PCI_VENDOR:
                kind = vendor.with_name("class").read_text()
                if kind.startswith(_PCI_DISPLAY):
                    return True
    return False
