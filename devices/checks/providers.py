"""Whether ONNX Runtime can reach the GPU.

It never says that it cannot: a session that asks for CUDA gets the CPU and at most a line in the
log (microsoft/onnxruntime#23372, #17801).
"""

import re
from pathlib import Path

import msgspec

from edgelm.devices.checks.context import Context
from edgelm.devices.checks.onnxruntimes import folder, installed
from edgelm.devices.checks.verdict import Verdict, error, ok, unknown, warning
from edgelm.devices.checks.wheels import gpu_wheel

CUDA_LIBRARY = "capi/libonnxruntime_providers_cuda.so"
_GPU_PROVIDERS = {
    "CUDAExecutionProvider",
    "DmlExecutionProvider",
    "NvTensorRTRTXExecutionProvider",
    "TensorrtExecutionProvider",
}
# The opt-out comes first: asking which providers there are must not report anything.
_ASK = """
import json, os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
try:
    import onnxruntime
    print(json.dumps({"providers": onnxruntime.get_available_providers()}))
except Exception as error:
    print(json.dumps({"failure": f"{type(error).__name__}: {error}"}))
"""


class _Answer(msgspec.Struct):
    providers: tuple[str, ...] = ()
    failure: str = ""


def imports(context: Context) -> Verdict | None:
    """Whether onnxruntime can be imported."""
    packages = installed(context)
    if not packages:
        return None
    answer = _ask(context)
    if not answer.failure:
        return ok(f"onnxruntime imports, with {', '.join(answer.providers)}")
    gpu = context.has_gpu and "onnxruntime-gpu" in packages
    wanted = gpu_wheel(context) if gpu else f"pip install {next(iter(packages))}"
    return error(
        f"onnxruntime cannot be imported: {answer.failure}",
        why="no bundle runs on it; another package's files often lie over its own",
        fix=f"pip uninstall -y {' '.join(packages)} && {wanted}",
    )


def gpu_provider(context: Context) -> Verdict | None:
    """Whether onnxruntime offers a provider for the GPU that is there."""
    if not context.has_gpu or not installed(context):
        return None
    if context.manifest and context.manifest.target == "cpu":
        return ok("the bundle is for the CPU, a GPU provider is not needed")
    answer = _ask(context)
    if answer.failure:
        return unknown("onnxruntime's providers", why=answer.failure)
    offered = ", ".join(answer.providers)
    if _GPU_PROVIDERS.intersection(answer.providers):
        return ok(f"onnxruntime offers {offered}")
    return warning(
        f"there is a GPU, onnxruntime offers only {offered}",
        why="a program that asks for the GPU gets the CPU without an error, several times slower",
        fix=f"to compute on the GPU: pip uninstall -y {' '.join(installed(context))} && "
        f"{gpu_wheel(context)}",
    )


def cuda_libraries(context: Context) -> Verdict | None:
    """Whether the libraries that the CUDA provider is linked to can be found."""
    if not context.has_gpu or not context.version("onnxruntime-gpu"):
        return None
    package = folder(context)
    missing = _missing(context, package / CUDA_LIBRARY)
    if not missing:
        return ok("the CUDA provider finds all its libraries")
    packaged = {name for name in missing if any(package.parent.glob(f"nvidia/*/lib/{name}"))}
    absent = sorted(missing - packaged)
    if not absent:
        return ok(
            f"{', '.join(sorted(packaged))} lie in pip's packages: a program finds them after "
            "onnxruntime.preload_dlls()"
        )
    return error(
        f"the CUDA provider needs {', '.join(absent)}, not found",
        why="the provider then fails to load and sessions run on the CPU without an error",
        fix=_how_to_get(context, absent),
    )


def _ask(context: Context) -> _Answer:
    return msgspec.json.decode(context.python(_ASK), type=_Answer)


def _missing(context: Context, library: Path) -> set[str]:
    listing = context.probes.run(["ldd", str(library)])
    return set(re.findall(r"^\s*(\S+) => not found", listing, re.MULTILINE))


def _how_to_get(context: Context, absent: list[str]) -> str:
    if context.machine.jetson:
        return f"sudo apt install nvidia-jetpack; or another wheel: {gpu_wheel(context)}"
    driver = "install NVIDIA's driver (a container needs --gpus all)"
    if "libcuda.so.1" not in absent:
        return gpu_wheel(context)
    return driver if len(absent) == 1 else f"{driver}, then: {gpu_wheel(context)}"
