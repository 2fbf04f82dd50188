"""Where to get a wheel with kernels for this machine's GPU."""

from edgelm.devices.checks.context import Context

_INDEX = "https://pypi.jetson-ai-lab.io"
# By the beginning of the JetPack version. The second index is known to lack packages
# (dusty-nv/jetson-containers#1711).
_FOLDERS = {"6": "jp6/cu126", "7.2": "jp7/cu132"}


def jetson_index(context: Context) -> str:
    """The package index for the Jetson's JetPack, or the root index if there is none."""
    jetpack = (context.machine.jetson and context.machine.jetson.jetpack) or ""
    for release, path in _FOLDERS.items():
        if jetpack == release or jetpack.startswith(f"{release}."):
            return f"{_INDEX}/{path}"
    return _INDEX


def gpu_wheel(context: Context, package: str = "onnxruntime-gpu") -> str:
    """The command that installs a package with kernels for this machine's GPU."""
    if context.machine.jetson is None:
        extras = "[cuda,cudnn]" if package == "onnxruntime-gpu" else ""
        return f"pip install '{package}{extras}'"
    python = ".".join(context.machine.python.split(".")[:2])
    return (
        f"pip install --index-url {jetson_index(context)} {package} (if it has none for Python "
        f"{python}: build it on the Jetson with {_architecture(context, package)})"
    )


def _architecture(context: Context, package: str) -> str:
    """The build setting that adds kernels for this GPU; a Jetson has one."""
    sm = context.compute_capabilities[0] if context.compute_capabilities else None
    if package == "torch":
        return f"TORCH_CUDA_ARCH_LIST={sm / 10 if sm else 'the compute capability'}"
    return f"CMAKE_CUDA_ARCHITECTURES={sm or 'the compute capability without its dot'}"
