"""Whether the driver supports the CUDA version that the installed wheels were built for.

A driver runs programs of its own CUDA and of all earlier ones, within a major number also of
later minor ones. On a Jetson CUDA comes with JetPack, and the driver's number means nothing.
"""

import re

from edgelm.devices.checks.context import MOUNT_FILES, Context
from edgelm.devices.checks.numbers import numbers
from edgelm.devices.checks.packages.onnxruntimes import folder
from edgelm.devices.checks.packages.wheels import gpu_wheel
from edgelm.devices.checks.verdict import Verdict, error, ok, unknown
from edgelm.devices.detection.jetpack import jetpack_of

# NVIDIA, CUDA Compatibility, minor version compatibility: the least driver of each major number.
_MIN_DRIVER = {12: 525, 13: 580}
# Packages with the CUDA version that they were built for in their name.
_NAMED = (
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
)
_BUILD_INFO = "capi/build_and_package_info.py"


def cuda_driver(context: Context) -> Verdict | None:
    """Whether the driver, or JetPack, is new enough for the CUDA of the installed wheels."""
    if not context.has_gpu:
        return None
    wanted = _wanted(context)
    if not wanted:
        return None
    package, major = max(wanted.items(), key=lambda item: item[1])
    if context.machine.jetson:
        return _compare_jetpack(context, package, major)
    return _compare_driver(context, package, major)


def _wanted(context: Context) -> dict[str, int]:
    wanted = {name: int(name[-2:]) for name in _NAMED if context.version(name)}
    if context.version("onnxruntime-gpu"):
        text = (folder(context) / _BUILD_INFO).read_text()
        match = re.search(r"cuda_version\s*=\s*'(\d+)", text)
        if match:
            wanted["onnxruntime-gpu"] = int(match[1])
    return wanted


def _compare_driver(context: Context, package: str, major: int) -> Verdict:
    drivers = [gpu.driver for gpu in context.machine.gpus if gpu.driver]
    if not drivers:
        return unknown(
            "the version of the GPU driver",
            why=context.unread("GPU"),
            fix="`nvidia-smi` prints it, where the driver works (a container needs --gpus all)",
        )
    least = _MIN_DRIVER.get(major)
    if least is None:
        return unknown(
            f"whether driver {drivers[0]} is new enough for {package}",
            why=f"the driver that CUDA {major} needs is not in the table",
            fix=f"`nvidia-smi` prints the CUDA that the driver supports; expected {major} or newer",
        )
    if numbers(drivers[0])[0] >= least:
        return ok(f"driver {drivers[0]} runs CUDA {major} ({package})")
    return error(
        f"driver {drivers[0]} is too old for {package}, built for CUDA {major}; expected {least} "
        "or newer",
        why="CUDA does not start (driver version is insufficient), and work falls back to the CPU",
        fix=f"install NVIDIA driver {least} or newer and reboot, or a build for an older CUDA",
    )


def _compare_jetpack(context: Context, package: str, major: int) -> Verdict:
    jetson = context.machine.jetson
    release = jetpack_of(jetson.l4t) if jetson and jetson.l4t else None
    if release is None:
        return unknown(
            "the CUDA version of this JetPack",
            why=context.unread("Jetson Linux"),
            fix=MOUNT_FILES,
        )
    if numbers(release.cuda)[0] >= major:
        return ok(f"JetPack {release.jetpack} has CUDA {release.cuda}, {package} needs {major}")
    remove = f"pip uninstall -y {package}"
    other = f" && {gpu_wheel(context)}" if package == "onnxruntime-gpu" else ""
    return error(
        f"{package} is built for CUDA {major}, JetPack {release.jetpack} has {release.cuda}",
        why="its libraries are missing and the driver does not support that CUDA version: nothing "
        "runs on the GPU",
        fix=f"{remove}{other}" if other else f"{remove}, or upgrade to JetPack 7 (CUDA 13)",
    )
