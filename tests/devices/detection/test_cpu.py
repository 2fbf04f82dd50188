"""The processor and the memory, and the limits of a container."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgelm.devices.detection.cpu import Memory, read_cpu, read_memory
from edgelm.devices.detection.machine import Cpu, Unread
from edgelm.devices.detection.probes import Probes
from tests.devices.recorded_machines import recorded

GROUP = "/sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope"
PHYSICAL = 15_720_400 * 1024
AVAILABLE = 11_340_120 * 1024


@pytest.mark.parametrize(
    ("machine", "cpu"),
    [
        ("plain-pc", Cpu("AMD Ryzen 5 5600G with Radeon Graphics", 6, 12, ("avx2",))),
        ("agx-orin-64gb-jetpack-6.2", Cpu("Cortex-A78AE", 8, 8, ("asimdhp", "asimddp"))),
        (
            "thor-t5000",
            Cpu("Neoverse-V3AE", 14, 14, ("asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2")),
        ),
        (
            "gb10",
            Cpu(
                "10 × Cortex-A725 + 10 × Cortex-X925",
                *(20, 20),
                ("asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
            ),
        ),
    ],
    ids=["x86", "orin", "thor", "gb10"],
)
def test_recorded_processors(tmp_path: Path, machine: str, cpu: Cpu) -> None:
    assert read_cpu(recorded(machine, tmp_path)) == (cpu, [])


def test_arm_core_that_is_not_in_the_table(tmp_path: Path) -> None:
    text = "processor\t: 0\nCPU implementer\t: 0x46\nCPU part\t: 0x003\n"
    cpu, unread = read_cpu(recorded("plain-pc", tmp_path, files={"/proc/cpuinfo": text}))
    assert cpu.name == "Arm part 0x003 of implementer 0x46"
    assert unread == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "not there"),
        ("", "does not name a processor"),
        ("\ufffd{}\n", "does not name a processor"),
    ],
    ids=["missing", "empty", "garbage"],
)
def test_processor_that_cannot_be_read(tmp_path: Path, text: str | None, why: str) -> None:
    cpu, unread = read_cpu(recorded("plain-pc", tmp_path, files={"/proc/cpuinfo": text}))
    assert cpu == Cpu("unknown", cores=12, usable=12)
    assert unread == [Unread("processor", "/proc/cpuinfo", why)]


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({}, 12),
        ({f"{GROUP}/cpu.max": "250000 100000"}, 2),
        ({f"{GROUP}/cpu.max": "50000 100000"}, 1),
        ({f"{GROUP}/cpu.max": "1600000 100000"}, 12),
        ({"/sys/fs/cgroup/user.slice/cpu.max": "300000 100000"}, 3),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        ({"/proc/self/cgroup": "4:cpu:/docker\n"}, 12),
        ({"/proc/self/cgroup": None}, 12),
    ],
    ids=["none", "own", "half", "loose", "above", "container", "version-1", "no-groups"],
)
def test_quota(tmp_path: Path, files: Mapping[str, str | None], usable: int) -> None:
    cpu, unread = read_cpu(recorded("plain-pc", tmp_path, files=files))
    assert (cpu.cores, cpu.usable, unread) == (6, usable, [])


@pytest.mark.parametrize("text", ["many", "1000", "1000 0"])
def test_garbled_quota_is_noted_and_left(tmp_path: Path, text: str) -> None:
    path = f"{GROUP}/cpu.max"
    cpu, unread = read_cpu(recorded("plain-pc", tmp_path, files={path: text}))
    assert cpu.usable == 12
    assert unread == [Unread("processor quota", path, f"cannot be parsed: {text!r}")]


def test_memory_without_limits(tmp_path: Path) -> None:
    memory = Memory(PHYSICAL, PHYSICAL, AVAILABLE)
    assert read_memory(recorded("plain-pc", tmp_path)) == (memory, [])


def test_memory_of_a_container(tmp_path: Path) -> None:
    files = {
        "/proc/self/cgroup": "0::/\n",
        "/sys/fs/cgroup/memory.max": "4000000000\n",
        "/sys/fs/cgroup/memory.current": "1500000000\n",
        # Mapped weights of a model that was used before: the kernel drops them when it must.
        "/sys/fs/cgroup/memory.stat": "anon 400000000\ninactive_file 1000000000\n",
    }
    memory, unread = read_memory(recorded("plain-pc", tmp_path, files=files))
    assert memory == Memory(PHYSICAL, 4_000_000_000, 3_500_000_000)
    assert unread == []


def test_limit_above_the_memory_and_full_group(tmp_path: Path) -> None:
    files = {
        f"{GROUP}/memory.max": "99000000000",
        "/sys/fs/cgroup/user.slice/memory.max": "1000",
        "/sys/fs/cgroup/user.slice/memory.current": "2000",
    }
    memory, _ = read_memory(recorded("plain-pc", tmp_path, files=files))
    assert memory == Memory(PHYSICAL, total_bytes=1000, available_bytes=0)


def test_garbled_limit_is_noted_and_left(tmp_path: Path) -> None:
    path = f"{GROUP}/memory.max"
    memory, unread = read_memory(recorded("plain-pc", tmp_path, files={path: "much"}))
    assert memory.total_bytes == PHYSICAL
    assert unread == [Unread("memory limit", path, "cannot be parsed: 'much'")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "not there"),
        ("MemFree: 3 kB", "does not contain MemTotal"),
        ("MemTotal:       0 kB", "does not contain MemTotal"),
    ],
    ids=["missing", "cut-off", "zero"],
)
def test_memory_that_cannot_be_read(tmp_path: Path, text: str | None, why: str) -> None:
    memory, unread = read_memory(recorded("plain-pc", tmp_path, files={"/proc/meminfo": text}))
    assert memory.physical_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert unread == [Unread("memory", "/proc/meminfo", why)]


def test_this_machine() -> None:
    cpu, _ = read_cpu(Probes())
    memory, _ = read_memory(Probes())
    assert 1 <= cpu.usable <= len(os.sched_getaffinity(0))
    assert 0 < memory.available_bytes <= memory.total_bytes <= memory.physical_bytes
