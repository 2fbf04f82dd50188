"""The processor and the memory, and how much of both this process may use.

Limits are those of control groups, version 2: the process's own and every one above it.
"""

import math
import re
from collections import Counter
from pathlib import PurePosixPath

import msgspec

from edgelm.devices.detection.machine import Cpu, Unread
from edgelm.devices.detection.memory import available_bytes, physical_bytes
from edgelm.devices.detection.probes import Probes

_CPUINFO = "/proc/cpuinfo"
_MEMINFO = "/proc/meminfo"

# By the kernel's "CPU implementer" and "CPU part": arch/arm64/include/asm/cputype.h.
_ARM_CORES = {
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd42"): "Cortex-A78AE",  # Orin
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd83"): "Neoverse-V3AE",  # Thor
    ("0x41", "0xd84"): "Neoverse-V3",
    ("0x41", "0xd85"): "Cortex-X925",  # GB10, with the A725
    ("0x41", "0xd87"): "Cortex-A725",
    ("0x4e", "0x003"): "Denver 2",
    ("0x4e", "0x004"): "Carmel",  # Xavier
}

# Instruction sets that matrix kernels use, as the Linux kernel spells them.
_ISA = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16"),
    *("asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


class Memory(msgspec.Struct, frozen=True):
    """`physical_bytes` is the machine's; the others respect the limits of this process."""

    physical_bytes: int
    total_bytes: int
    available_bytes: int


def read_cpu(probes: Probes) -> tuple[Cpu, list[Unread]]:
    """The processor, and the threads that affinity and a container's quota allow."""
    unread: list[Unread] = []
    blocks = _processors(probes.read("processor", _CPUINFO, unread))
    if not blocks:
        unread = unread or [Unread("processor", _CPUINFO, "does not name a processor")]
        threads = probes.threads()
        return Cpu("unknown", cores=threads, usable=threads), unread
    flags = (blocks[0].get("flags") or blocks[0].get("Features") or "").split()
    usable = min([probes.threads(), *_quotas(probes, unread)])
    cpu = Cpu(
        name=_name(blocks),
        cores=_cores(blocks),
        usable=max(1, usable),
        isa=tuple(name for name in _ISA if name in flags),
    )
    return cpu, unread


def read_memory(probes: Probes) -> tuple[Memory, list[Unread]]:
    """Memory of the machine, and the part that a container may use."""
    unread: list[Unread] = []
    match = re.search(r"^MemTotal:\s+([1-9]\d*) kB", probes.read("memory", _MEMINFO, unread), re.M)
    if match:
        physical = int(match[1]) * 1024
    else:
        unread = unread or [Unread("memory", _MEMINFO, "does not contain MemTotal")]
        physical = physical_bytes()
    total, available = physical, available_bytes(probes.path(_MEMINFO))
    for folder in _control_groups(probes):
        limit = _number(probes, folder / "memory.max", unread)
        if limit is not None:
            total = min(total, limit)
            available = min(available, max(0, limit - _held(probes, folder, unread)))
    return Memory(physical, total, min(available, total)), unread


def _processors(text: str) -> list[dict[str, str]]:
    """The blocks of cpuinfo that describe a hardware thread."""
    blocks = []
    for block in re.split(r"\n\s*\n", text):
        pairs = (line.partition(":") for line in block.splitlines())
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        if "processor" in fields:
            blocks.append(fields)
    return blocks


def _name(blocks: list[dict[str, str]]) -> str:
    kinds = Counter(_kind(block) for block in blocks)
    if len(kinds) == 1:
        return next(iter(kinds))
    return " + ".join(f"{count} × {kind}" for kind, count in kinds.most_common())


def _kind(block: dict[str, str]) -> str:
    # Jetson kernels also give a model name, but "ARMv8 Processor rev 1 (v8l)" for every core.
    if "CPU part" in block:
        maker, part = block.get("CPU implementer", ""), block["CPU part"]
        return _ARM_CORES.get((maker, part), f"Arm part {part} of implementer {maker}")
    return block.get("model name") or "unknown"


def _cores(blocks: list[dict[str, str]]) -> int:
    if all("core id" in block for block in blocks):
        return len({(block.get("physical id"), block["core id"]) for block in blocks})
    return len(blocks)  # Arm cores have one thread each


def _control_groups(probes: Probes) -> list[PurePosixPath]:
    """The folders of the process's control group and of its parents."""
    try:
        match = re.search(r"^0::(/.*)$", probes.text("/proc/self/cgroup"), re.M)
    except OSError:
        match = None
    own = PurePosixPath(match[1] if match else "/")
    return [PurePosixPath(f"/sys/fs/cgroup{group}") for group in (own, *own.parents)]


def _quotas(probes: Probes, unread: list[Unread]) -> list[int]:
    """Whole threads that each `cpu.max` (microseconds per period) allows."""
    quotas = []
    for folder in _control_groups(probes):
        words = _limit(probes, folder / "cpu.max").split()
        if words and words[0] != "max":
            try:
                quotas.append(math.floor(int(words[0]) / int(words[1])))
            except (ValueError, IndexError, ZeroDivisionError):
                unread.append(_garbled("processor quota", folder / "cpu.max", " ".join(words)))
    return quotas


def _held(probes: Probes, folder: PurePosixPath, unread: list[Unread]) -> int:
    """Memory of the group, without mapped files that the kernel can drop."""
    current = _number(probes, folder / "memory.current", unread) or 0
    match = re.search(r"^inactive_file (\d+)$", _limit(probes, folder / "memory.stat"), re.M)
    return current - (int(match[1]) if match else 0)


def _number(probes: Probes, path: PurePosixPath, unread: list[Unread]) -> int | None:
    text = _limit(probes, path)
    if text in ("", "max"):
        return None
    try:
        return int(text)
    except ValueError:
        unread.append(_garbled("memory limit", path, text))
        return None


def _limit(probes: Probes, path: PurePosixPath) -> str:
    # Missing in the root group, and in kernels without that controller.
    try:
        return probes.text(str(path))
    except OSError:
        return ""


def _garbled(what: str, path: PurePosixPath, text: str) -> Unread:
    return Unread(what, str(path), f"cannot be parsed: {text[:40]!r}")
