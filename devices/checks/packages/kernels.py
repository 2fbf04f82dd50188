"""Whether the installed wheels contain kernels for this GPU.

PyPI's wheels for aarch64 are built for servers (SBSA): they install on a Jetson, list the GPU,
and fail at the first kernel with "no kernel image is available" (jax-ml/jax#40487).
"""

import re
from collections.abc import Iterable

import msgspec

from edgelm.devices.checks.context import Context
from edgelm.devices.checks.nvidia.fatbin import kernel_targets
from edgelm.devices.checks.packages.onnxruntimes import folder
from edgelm.devices.checks.packages.providers import CUDA_LIBRARY
from edgelm.devices.checks.packages.wheels import gpu_wheel
from edgelm.devices.checks.verdict import Verdict, error, ok, unknown, warning

_FAILS = "it lists the GPU, then fails at the first kernel: no kernel image is available"
_ASK_TORCH = """
import json
try:
    import torch
    cuda = torch.version.cuda or ""
    print(json.dumps({"cuda": cuda, "targets": torch.cuda.get_arch_list() if cuda else []}))
except Exception as error:
    print(json.dumps({"failure": f"{type(error).__name__}: {error}"}))
"""


class _Torch(msgspec.Struct):
    cuda: str = ""
    targets: tuple[str, ...] = ()
    failure: str = ""


def covers(targets: Iterable[str], sm: int, *, jetson: bool) -> bool | None:
    """Whether kernels for `targets` run on a GPU; None where sources disagree.

    Machine code runs on its own capability and, on desktops, on later ones of the same major
    number. For Jetson NVIDIA's programming guide excludes the latter, and reports differ
    (jax-ml/jax#40492 against bitsandbytes#1941). Portable assembly runs on all later ones. The
    suffix a, as in sm_90a, excludes both; f limits both to a family. From 9.0 on a library may
    have these suffixes without showing them.
    """
    parsed = [re.fullmatch(r"(sm|compute)_(\d+)([af]?)", target) for target in targets]
    known = [(match[1], int(match[2]), match[3]) for match in parsed if match]
    if any(kind == "sm" and number == sm for kind, number, _ in known):
        return True
    if any(kind == "compute" and number <= sm and not end for kind, number, end in known):
        return True
    family = any(
        kind == "sm" and number // 10 == sm // 10 and number < sm and end != "a"
        for kind, number, end in known
    )
    if family and (jetson or sm >= 90):
        return None
    return family


def onnxruntime_kernels(context: Context) -> Verdict | None:
    """Whether onnxruntime-gpu has kernels for the GPU."""
    version = context.version("onnxruntime-gpu")
    if not version or not context.has_gpu:
        return None
    targets = kernel_targets(folder(context) / CUDA_LIBRARY)
    if not targets:
        return unknown(
            f"which kernels onnxruntime-gpu {version} has",
            why=f"no fat binary was found in {CUDA_LIBRARY}",
            fix=f"run a bundle with it once; if that fails: {gpu_wheel(context)}",
        )
    return _compare(context, f"onnxruntime-gpu {version}", targets, gpu_wheel(context))


def torch_kernels(context: Context) -> Verdict | None:
    """Whether torch, if it is installed on a Jetson, has kernels for its GPU."""
    version = context.version("torch")
    if not version or not context.machine.jetson:
        return None
    answer = msgspec.json.decode(context.python(_ASK_TORCH), type=_Torch)
    fix = gpu_wheel(context, "torch")
    if answer.failure:
        return error(
            f"torch {version} cannot be imported: {answer.failure}",
            why="edge-export and edge-compress need it; PyPI's wheels lack Jetson's libraries",
            fix=fix,
        )
    if not answer.cuda:
        return warning(
            f"torch {version} is built without CUDA",
            why="edge-compress runs on the CPU, many times slower",
            fix=fix,
        )
    if not answer.targets:
        return warning(
            f"torch {version} is built for CUDA {answer.cuda}, but does not find the GPU",
            why="edge-compress runs on the CPU, many times slower",
            fix=fix,
        )
    return _compare(context, f"torch {version}", answer.targets, fix)


def _compare(context: Context, package: str, targets: Iterable[str], fix: str) -> Verdict:
    names = ", ".join(sorted(targets, key=lambda name: (name[:2], int(re.sub(r"\D", "", name)))))
    if not context.compute_capabilities:
        return unknown(
            f"whether {package} has kernels for this GPU; it has {names}",
            why=f"the GPU's compute capability is not known ({context.unread('SM of')})",
            fix="`nvidia-smi --query-gpu=compute_cap --format=csv` prints it; one of the package's "
            "kernels must be for it",
        )
    jetson = context.machine.jetson is not None
    answers = {sm: covers(targets, sm, jetson=jetson) for sm in context.compute_capabilities}
    lacking = [f"sm_{sm}" for sm, covered in answers.items() if covered is False]
    doubtful = [f"sm_{sm}" for sm, covered in answers.items() if covered is None]
    if lacking:
        return error(
            f"{package} has kernels for {names}, but not for this GPU, {', '.join(lacking)}",
            why=_FAILS,
            fix=fix,
        )
    if doubtful:
        return unknown(
            f"whether {package} runs on {', '.join(doubtful)}; it has {names}",
            why="kernels of the same family may or may not run there; test before relying on it",
            fix=fix,
        )
    return ok(
        f"{package} has kernels for {', '.join(f'sm_{sm}' for sm in context.compute_capabilities)}"
    )
