"""ONNX Runtime is published as many packages that all install the same folder, `onnxruntime`.

The last one installed overwrites the files of the others, and uninstalling one breaks the rest.
Package managers do not detect the conflict.
"""

from pathlib import Path

from edgelm.devices.checks.context import Context
from edgelm.devices.checks.packages.wheels import gpu_wheel
from edgelm.devices.checks.verdict import Verdict, error, ok, warning

# The packages on PyPI that install `onnxruntime/`; the plugins onnxruntime-ep-* use other folders.
PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-migraphx",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-training",
    "onnxruntime-training-cpu",
    "onnxruntime-trt-rtx",
    "onnxruntime-webgpu",
    "onnxruntime-windowsml",
    "ort-nightly",
    "ort-nightly-gpu",
)
_FOLDER = (
    "import importlib.util as u; s = u.find_spec('onnxruntime'); "
    "print(list(s.submodule_search_locations)[0] if s else '')"
)


def installed(context: Context) -> dict[str, str]:
    """The installed ones of these packages, with their versions."""
    versions = {package: context.version(package) for package in PACKAGES}
    return {package: version for package, version in versions.items() if version}


def folder(context: Context) -> Path:
    """The folder `onnxruntime` that Python would import, found without importing it."""
    path = context.python(_FOLDER)
    if not path:
        raise FileNotFoundError("Python cannot find a module onnxruntime")
    return context.probes.path(path)


def two_packages(context: Context) -> Verdict | None:
    """Whether several of these packages are installed."""
    found = installed(context)
    if not found:
        return None
    names = [f"{package} {version}" for package, version in found.items()]
    if len(found) == 1:
        return ok(f"{names[0]} is the only onnxruntime package")
    wanted = gpu_wheel(context) if context.has_gpu else "pip install onnxruntime"
    return error(
        f"{' and '.join(names)} are all installed; expected one of them",
        why="they share the folder onnxruntime: the last one installed has overwritten the others, "
        "and removing one breaks the rest",
        fix=f"pip uninstall -y {' '.join(found)} && {wanted}",
    )


def needless_gpu_package(context: Context) -> Verdict | None:
    """Whether a CUDA build is installed on a machine without a GPU."""
    version = context.version("onnxruntime-gpu")
    if not version:
        return None
    if context.has_gpu:
        return ok(f"onnxruntime-gpu {version} is installed, and there is a GPU")
    return warning(
        f"onnxruntime-gpu {version} is installed, but no NVIDIA GPU was found",
        why="it runs on the CPU as onnxruntime does, but takes 256 MB instead of 28 MB",
        fix="pip uninstall -y onnxruntime-gpu && pip install onnxruntime; or, if there is a GPU, "
        "install its driver until nvidia-smi lists it",
    )
