"""The doctor: what is wrong on this machine, why it matters and how to fix it.

The mistakes that cost days on edge devices are silent: a wheel without kernels for the GPU
installs, a session that asks for the GPU runs on the CPU, a board in a low-power mode is slow.
Every check in edgelm.devices.checks looks for one of them; each file has one subject.
"""

from collections.abc import Iterable, Sequence

import msgspec

from edgelm.bundle import Manifest
from edgelm.devices.checks import build_memory, bundle_target
from edgelm.devices.checks.context import Check, Context
from edgelm.devices.checks.host import cpu, desktop, memory, power, swap, telemetry
from edgelm.devices.checks.nvidia import driver, gpu, jetpack, tensorrt
from edgelm.devices.checks.packages import kernels, onnxruntimes, providers
from edgelm.devices.checks.verdict import Severity, Verdict, unknown
from edgelm.devices.detection.machine import Machine
from edgelm.devices.detection.probes import Probes, reason

# The names are part of the report's format: scripts look for them.
CHECKS: dict[str, Check] = {
    "bundle.target": bundle_target.bundle_target,
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
    "gpu.memory": gpu.memory,
    "gpu.power-limit": gpu.power_limit,
    "power.battery": power.battery,
    "memory.bundle": memory.bundle_memory,
    "memory.build": build_memory.build_memory,
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


class CheckResult(msgspec.Struct, frozen=True):
    """The result of one check. `why` it matters and how to `fix` it are empty if all is well."""

    check: str
    severity: Severity
    what: str
    why: str
    fix: str


def examine(
    machine: Machine, probes: Probes | None = None, manifest: Manifest | None = None
) -> tuple[CheckResult, ...]:
    """Run every check that applies to a machine and to the bundle that should run on it.

    Nothing is changed and nothing leaves the machine.
    """
    context = Context(machine, probes or Probes(), manifest)
    verdicts = {name: _do(check, context) for name, check in CHECKS.items()}
    return tuple(
        CheckResult(name, verdict.severity, verdict.what, verdict.why, verdict.fix)
        for name, verdict in verdicts.items()
        if verdict
    )


def exit_code(results: Iterable[CheckResult]) -> int:
    """1 if any check reports an error, otherwise 0.

    Warnings do not count: the machine works, and a low power mode, for example, may be intended.
    Neither do checks that could not be made.
    """
    return int(any(result.severity == "error" for result in results))


def describe(results: Sequence[CheckResult]) -> str:
    """The results as text: problems first, then the checks that passed or could not be made."""
    problems = [
        _problem(result)
        for severity in _PROBLEMS
        for result in results
        if result.severity == severity
    ]
    return "\n\n".join([*problems, _summary(results)])


def _do(check: Check, context: Context) -> Verdict | None:
    try:
        return check(context)
    except Exception as error:
        # One check that fails must not hide the others.
        return unknown("the check could not be made", why=_reason(error), fix=_next_step(error))


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    return f"{error.filename}: {reason(error)}" if error.filename else str(error)


def _next_step(error: Exception) -> str:
    """What makes a check possible that failed for this reason."""
    if isinstance(error, PermissionError):
        return "run the doctor as root: sudo $(which edge-devices) doctor"
    if isinstance(error, OSError):
        return "install what is missing; in a container, run the doctor on the system itself"
    return "report it, with the output of edge-devices detect --json"


def _problem(result: CheckResult) -> str:
    return (
        f"{result.severity}: {result.what}\n"
        f"  why:   {result.why}\n"
        f"  fix:   {result.fix}\n"
        f"  check: {result.check}"
    )


def _summary(results: Sequence[CheckResult]) -> str:
    passed = sum(result.severity == "ok" for result in results)
    undone = [result for result in results if result.severity == "unknown"]
    more = f", {len(undone)} could not be made:" if undone else ""
    lines = [f"{passed} check{'' if passed == 1 else 's'} passed{more}"]
    for result in undone:
        lines.append(f"  {result.check}: {result.what}: {result.why}")
        lines += [f"    try: {result.fix}"] if result.fix else []
    return "\n".join(lines)
