"""The doctor: what is wrong on this machine, why it matters and how to fix it.

Most of what costs people days on edge devices says nothing: the wheel without kernels for the
GPU installs, the session without a GPU runs, the board in its low-power mode answers slowly.
Every check asks for one of those; they are in edgelm.devices.checks, one theme per file.
"""

from collections.abc import Iterable, Sequence

import msgspec

from edgelm.bundle import Manifest
from edgelm.devices.checks import (
    cpu,
    desktop,
    driver,
    gpu,
    jetpack,
    kernels,
    memory,
    onnxruntimes,
    power,
    providers,
    swap,
    telemetry,
    tensorrt,
)
from edgelm.devices.checks.context import Check, Context
from edgelm.devices.checks.verdict import Severity, Verdict, unknown
from edgelm.devices.detection.machine import Machine
from edgelm.devices.detection.probes import Probes, reason

# The names are part of the report's format: scripts look for them.
CHECKS: dict[str, Check] = {
    "onnxruntime.two-packages": onnxruntimes.two_packages,
    "onnxruntime.needless-gpu-package": onnxruntimes.needless_gpu_package,
    "onnxruntime.import": providers.imports,
    "onnxruntime.gpu-provider": providers.gpu_provider,
    "onnxruntime.cuda-libraries": providers.cuda_libraries,
    "onnxruntime.kernels": kernels.onnxruntime_kernels,
    "onnxruntime.telemetry": telemetry.telemetry,
    "torch.kernels": kernels.torch_kernels,
    "cuda.driver": driver.cuda_driver,
    "tensorrt.dialect": tensorrt.dialect,
    "tensorrt.jetpack": tensorrt.jetpack_support,
    "tensorrt.onnxruntime": tensorrt.onnxruntime_link,
    "jetson.nvmap": jetpack.nvmap,
    "jetson.jetpack": jetpack.release,
    "jetson.power-mode": power.power_mode,
    "jetson.clocks": power.clocks,
    "gpu.readable": gpu.readable,
    "gpu.power-limit": gpu.power_limit,
    "power.battery": power.battery,
    "memory.bundle": memory.bundle_memory,
    "memory.desktop": desktop.desktop,
    "memory.zram": swap.zram,
    "memory.swap-file": swap.swap_file,
    "memory.swap-in-use": swap.in_use,
    "disk.space": memory.disk_space,
    "cpu.threads": cpu.threads,
    "cpu.instructions": cpu.instructions,
    "cpu.governor": cpu.governor,
}
_PROBLEMS: tuple[Severity, ...] = ("error", "warning")


class Finding(msgspec.Struct, frozen=True):
    """What one check says. `why` it matters and how to `fix` it are empty where all is well."""

    check: str
    severity: Severity
    what: str
    why: str
    fix: str


def examine(
    machine: Machine, probes: Probes | None = None, manifest: Manifest | None = None
) -> tuple[Finding, ...]:
    """Do every check that applies to a machine, and to the bundle that is to run on it.

    Nothing is changed and nothing leaves the machine.
    """
    context = Context(machine, probes or Probes(), manifest)
    verdicts = {name: _do(check, context) for name, check in CHECKS.items()}
    return tuple(
        Finding(name, verdict.severity, verdict.what, verdict.why, verdict.fix)
        for name, verdict in verdicts.items()
        if verdict
    )


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if anything is an error, otherwise 0.

    A warning is no failure: the machine works, and what is warned of, such as a low power mode,
    may be meant. What could not be looked at is no failure either.
    """
    return int(any(finding.severity == "error" for finding in findings))


def describe(findings: Sequence[Finding]) -> str:
    """The findings for people: problems first, then what passed and what could not be done."""
    problems = [
        _problem(finding)
        for severity in _PROBLEMS
        for finding in findings
        if finding.severity == severity
    ]
    return "\n\n".join([*problems, _summary(findings)])


def _do(check: Check, context: Context) -> Verdict | None:
    try:
        return check(context)
    except Exception as error:
        # Whatever is wrong with a machine, the other checks must still be heard.
        return unknown("the check could not be done", why=_reason(error))


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    return f"{error.filename}: {reason(error)}" if error.filename else str(error)


def _problem(finding: Finding) -> str:
    return (
        f"{finding.severity}: {finding.what}\n"
        f"  why:   {finding.why}\n"
        f"  fix:   {finding.fix}\n"
        f"  check: {finding.check}"
    )


def _summary(findings: Sequence[Finding]) -> str:
    passed = sum(finding.severity == "ok" for finding in findings)
    undone = [finding for finding in findings if finding.severity == "unknown"]
    more = f", {len(undone)} could not be done:" if undone else ""
    lines = [f"{passed} check{'' if passed == 1 else 's'} passed{more}"]
    for finding in undone:
        lines.append(f"  {finding.check}: {finding.what}: {finding.why}")
        lines += [f"    try: {finding.fix}"] if finding.fix else []
    return "\n".join(lines)
