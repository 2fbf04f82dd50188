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

from edgelm.devices.detection.machine import Gpu, MemoryKind, Unread
from edgelm.devices.detection.probes import Probes, reason

UNREAD_GPU = "NVIDIA GPU"  # the entry for a GPU that exists but cannot be read

# Compute capabilities of GPUs that have no memory of their own: TX1, TX2, Xavier, Orin, Thor
# (10.1 before CUDA 13) and GB10. Some of their drivers report the machine's memory.
_INTEGRATED = frozenset({53, 62, 72, 87, 101, 110, 121})
# FP32 lanes of a multiprocessor: 64 in Volta, Turing and GA100, 128 in everything newer.
_CORES_OF_SM = {70: 64, 72: 64, 75: 64, 80: 64}

_SIGNS = ("/proc/driver/nvidia", "/dev/nvidia0", "/usr/lib/wsl/lib/libnvidia-ml.so.1")
_PCI_VENDOR = "0x10de"
_PCI_DISPLAY = "0x03"  # the first byte of the class: display controllers

_SAYS_LITTLE = r"nvidia|geforce|generation|gpu|dgx|spark|hbm\d\w?"


def read_gpus(probes: Probes, memory_bytes: int) -> tuple[list[Gpu], list[Unread]]:
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


def gpu_profile(gpu: Gpu, known: Collection[str]) -> str | None:
    """The profile whose name matches the GPU's, the most specific one; None if none matches.

    It contains all words of the GPU's name, and may add what follows from it, such as its memory.

    >>> gpu_profile(Gpu("NVIDIA GeForce RTX 4060 Laptop GPU"), ["rtx-4060", "rtx-4060-laptop"])
    'rtx-4060-laptop'
    """
    named = _words(gpu.name)
    # NVML leaves out the form of an SXM module: "NVIDIA H200", but "NVIDIA H200 NVL".
    implied = {"sxm"}
    if gpu.memory_bytes:
        implied.add(f"{math.ceil(gpu.memory_bytes / 2**30)}gb")
    fitting = [name for name in known if named <= _words(name) <= named | implied]
    return max(fitting, key=lambda name: len(_words(name)), default=None)


def _words(name: str) -> set[str]:
    text = re.sub(r"(\d) ti\b", r"\1ti", name.lower().replace("-", " "))
    return {word for word in text.split() if not re.fullmatch(_SAYS_LITTLE, word)}


@dataclass
class _Reader:
    """An initialized NVML, and the values that it could not read."""

    nvml: Any
    unread: list[Unread]

    def gpus(self, memory_bytes: int) -> list[Gpu]:
        driver = self.ask("GPU driver", "nvmlSystemGetDriverVersion")
        cuda = self.ask("CUDA of the driver", "nvmlSystemGetCudaDriverVersion_v2")
        found = []
        for index in range(self.ask("GPUs", "nvmlDeviceGetCount") or 0):
            handle = self.ask(f"GPU {index}", "nvmlDeviceGetHandleByIndex", index)
            if handle is not None:
                found.append(self._gpu(handle, memory_bytes, _text(driver), _cuda(cuda)))
        return found

    def _gpu(self, handle: Any, machine_bytes: int, driver: str | None, cuda: str | None) -> Gpu:
        name = _text(self.ask("GPU name", "nvmlDeviceGetName", handle)) or "NVIDIA GPU"
        capability = self.ask(f"SM of {name}", "nvmlDeviceGetCudaComputeCapability", handle)
        sm = 10 * capability[0] + capability[1] if capability else None
        cores = self.ask(f"SMs of {name}", "nvmlDeviceGetNumGpuCores", handle)
        limit_mw = self.ask(f"power limit of {name}", "nvmlDeviceGetEnforcedPowerLimit", handle)
        memory_bytes, kind = self._memory(name, handle, sm, machine_bytes)
        return Gpu(
            name=name,
            sm=sm,
            sm_count=cores // _CORES_OF_SM.get(sm, 128) if cores and sm else None,
            memory_bytes=memory_bytes,
            memory_kind=kind,
            driver=driver,
            cuda=cuda,
            power_limit_w=limit_mw / 1e3 if limit_mw else None,
            max_clock_mhz=self.ask(
                f"highest clock of {name}",
                "nvmlDeviceGetMaxClockInfo",
                handle,
                self.nvml.NVML_CLOCK_SM,
            ),
        )

    def _memory(
        self, name: str, handle: Any, sm: int | None, machine_bytes: int
    ) -> tuple[int | None, MemoryKind | None]:
        if sm in _INTEGRATED:
            return machine_bytes, "shared"
        before = len(self.unread)
        info = self.ask(f"memory of {name}", "nvmlDeviceGetMemoryInfo", handle)
        if info is not None:
            return info.total, "dedicated"
        return (None, None) if len(self.unread) > before else (machine_bytes, "shared")

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
