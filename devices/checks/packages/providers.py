"""Whether ONNX Runtime can reach the GPU.

If it cannot, there is no error: a session that asks for CUDA runs on the CPU, with at most a line
in the log (microsoft/onnxruntime#23372, #17801).
"""

import re
from pathlib import Path

import msgspec

from edgelm.devices.checks.bundle_target import runs_here
from edgelm.devices.checks.context import Context
from edgelm.devices.checks.packages.onnxruntimes import folder, installed
from edgelm.devices.checks.packages.wheels import gpu_wheel
from edgelm.devices.checks.verdict import Verdict, error, ok, unknown, warning

_CUDA_ENGINE = "onnxruntime-cuda"
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
    """Whether onnxruntime can be imported, and is there for a bundle that needs it."""
    packages = installed(context)
    if not packages:
        return _absent(context)
    answer = _ask(context)
    if not answer.failure:
        return ok(f"onnxruntime imports, with {', '.join(answer.providers)}")
    gpu = context.has_gpu and "onnxruntime-gpu" in packages
    wanted = gpu_wheel(context) if gpu else f"pip install {next(iter(packages))}"
    return error(
        f"onnxruntime cannot be imported: {answer.failure}",
        why="no bundle can run with it; often another package has overwritten its files",
        fix=f"pip uninstall -y {' '.join(packages)} && {wanted}",
    )


def gpu_provider(context: Context) -> Verdict | None:
    """Whether onnxruntime has an execution provider for this machine's GPU."""
    if not context.has_gpu or not installed(context):
        return None
    if context.manifest and context.manifest.engine.name != _CUDA_ENGINE:
        return ok(f"the bundle runs with {context.manifest.engine.name}: no GPU provider is needed")
    answer = _ask(context)
    if answer.failure:
        return unknown(
            "onnxruntime's providers",
            why=answer.failure,
            fix="repair the import of onnxruntime first (see onnxruntime.import)",
        )
    offered = ", ".join(answer.providers)
    if _GPU_PROVIDERS.intersection(answer.providers):
        return ok(f"onnxruntime has {offered}")
    return warning(
        f"this machine has a GPU, but onnxruntime only has {offered}",
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
            f"{', '.join(sorted(packaged))} are in pip packages: programs find them after "
            "onnxruntime.preload_dlls()"
        )
    return error(
        f"the CUDA provider needs {', '.join(absent)}, which cannot be found",
        why="the provider then fails to load and sessions run on the CPU without an error",
        fix=_how_to_get(context, absent),
    )


def _absent(context: Context) -> Verdict | None:
    """The verdict without any package: a problem only for a bundle that needs one."""
    manifest = context.manifest
    if manifest is None or manifest.compiles or not runs_here(context):
        return None
    cuda = manifest.engine.name == _CUDA_ENGINE
    return error(
        "onnxruntime is not installed",
        why="the bundle runs with it",
        fix=gpu_wheel(context) if cuda else "pip install 'edgelm[cpu]'",
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
