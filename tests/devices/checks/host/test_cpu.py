"""Threads, instructions and clocks of the CPU."""

from pathlib import Path

import msgspec
import pytest

from edgelm.devices.checks.host.cpu import governor, instructions, threads
from edgelm.devices.detection.machine import Cpu, Machine, Unread
from tests.devices.checks.recorded import ORIN_NANO, PLAIN, context


def with_cpu(machine: Machine, cores: int, usable: int, *isa: str) -> Machine:
    return msgspec.structs.replace(machine, cpu=Cpu("Core i7", cores, usable, isa))


def test_all_cores(tmp_path: Path) -> None:
    verdict = threads(context(PLAIN, tmp_path, threads=16))
    assert verdict
    assert verdict.severity == "ok"
    assert verdict.what == "all 8 cores can be used"


def test_affinity(tmp_path: Path) -> None:
    verdict = threads(context(with_cpu(PLAIN, 8, 2), tmp_path, threads=2))
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what == "this process can use only 2 threads, the machine has 8 cores"
    assert "taskset" in verdict.fix


def test_quota(tmp_path: Path) -> None:
    verdict = threads(context(with_cpu(PLAIN, 8, 2), tmp_path, threads=16))
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what == "a control group limits this process to the time of 2 threads on 16"
    assert verdict.fix.startswith("run with --threads 2, ")


@pytest.mark.parametrize(
    ("machine", "isa", "severity", "what"),
    [
        (PLAIN, ("avx2", "avx512_vnni"), "ok", "the CPU has 8-bit dot products (avx512vnni)"),
        (PLAIN, ("avx2", "avx_vnni"), "ok", "the CPU has 8-bit dot products (avxvnni)"),
        (PLAIN, ("avx2", "fma"), "warning", "Core i7 has no VNNI"),
        (PLAIN, ("fma",), "warning", "Core i7 has no AVX2"),
        (ORIN_NANO, ("asimddp",), "ok", "the CPU has 8-bit dot products (asimddp)"),
        (ORIN_NANO, ("asimdhp",), "warning", "Core i7 has no dotprod"),
    ],
)
def test_instructions(
    machine: Machine, isa: tuple[str, ...], severity: str, what: str, tmp_path: Path
) -> None:
    verdict = instructions(context(with_cpu(machine, 4, 4, *isa), tmp_path))
    assert verdict
    assert (verdict.severity, verdict.what) == (severity, what)
    assert ("edge-bench" in verdict.fix) == (severity == "warning")


def test_unknown_instructions(tmp_path: Path) -> None:
    machine = msgspec.structs.replace(
        with_cpu(PLAIN, 4, 4), unread=(Unread("processor", "/proc/cpuinfo", "not there"),)
    )
    verdict = instructions(context(machine, tmp_path))
    assert verdict
    assert verdict.severity == "unknown"
    assert verdict.why == "/proc/cpuinfo: not there"


def policies(driver: str, *governors: str, preference: str | None = None) -> dict[str, str]:
    files: dict[str, str] = {}
    for number, name in enumerate(governors):
        folder = f"/sys/devices/system/cpu/cpu{number}/cpufreq"
        files |= {f"{folder}/scaling_governor": f"{name}\n", f"{folder}/scaling_driver": driver}
        if preference:
            files[f"{folder}/energy_performance_preference"] = f"{preference}\n"
    return files


@pytest.mark.parametrize(
    ("files", "severity", "what"),
    [
        (
            policies("tegra194-cpufreq", "schedutil", "schedutil"),
            "ok",
            "no CPU is kept at its lowest clock (tegra194-cpufreq)",
        ),
        (
            policies("acpi-cpufreq", "schedutil", "powersave"),
            "warning",
            "the governor of 1 of 2 CPUs is powersave",
        ),
        (
            policies("intel_pstate", "powersave", preference="balance_performance"),
            "ok",
            "the CPU's clock follows the load, with the preference balance_performance",
        ),
        (
            policies("amd-pstate-epp", "powersave", preference="power"),
            "warning",
            "the CPU is set to save power",
        ),
    ],
    ids=["schedutil", "held", "pstate", "pstate-saving"],
)
def test_governor(files: dict[str, str], severity: str, what: str, tmp_path: Path) -> None:
    verdict = governor(context(PLAIN, tmp_path, files=files))
    assert verdict
    assert (verdict.severity, verdict.what) == (severity, what)
    assert (severity == "warning") == bool(verdict.fix)


def test_no_governor(tmp_path: Path) -> None:
    assert governor(context(PLAIN, tmp_path)) is None


def test_governor_that_cannot_be_read(tmp_path: Path) -> None:
    files = policies("acpi-cpufreq", "powersave")
    files.popitem()
    with pytest.raises(FileNotFoundError):
        governor(context(PLAIN, tmp_path, files=files))
