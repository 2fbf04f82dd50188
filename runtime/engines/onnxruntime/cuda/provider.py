"""ONNX Runtime's CUDA provider: whether the package has it, and loading a graph with it.

ONNX Runtime falls back to the CPU without an error where its CUDA provider does not load, or has
no kernel; here both are errors.
"""

from pathlib import Path
from types import FunctionType
from typing import Any

from edgelm.devices.checks.nvidia.fatbin import kernel_targets
from edgelm.devices.checks.packages.kernels import covers
from edgelm.devices.checks.packages.providers import CUDA_LIBRARY
from edgelm.devices.detection.jetson import read_jetson
from edgelm.devices.detection.probes import Probes
from edgelm.errors import BadBundle, DoesNotFit, MissingPackage
from edgelm.reasons import reason
from edgelm.runtime.engines.cuda import Gpu, out_of_memory
from edgelm.runtime.engines.onnxruntime.onnxruntime_module import LazyOnnxRuntime

_INSTALL = "pip install 'edgelm[gpu]'"
onnxruntime = LazyOnnxRuntime(
    "no engine installed: this bundle runs on ONNX Runtime with CUDA; on a Jetson edge-devices "
    f"doctor names the package, elsewhere: {_INSTALL}"
)
_CUDA = "CUDAExecutionProvider"


def check_onnxruntime(gpu: Gpu) -> None:
    """Raise MissingPackage unless the installed onnxruntime has what runs on a GPU."""
    version = onnxruntime.__version__
    if _CUDA not in onnxruntime.get_available_providers():
        raise MissingPackage(
            f"onnxruntime {version} has no CUDA provider, it is the package for the CPU; pip "
            f"uninstall -y onnxruntime && {_INSTALL} (on a Jetson edge-devices doctor names the "
            "package)"
        )
    library = Path(onnxruntime.__file__).parent / CUDA_LIBRARY
    targets = kernel_targets(library) if library.is_file() else frozenset()
    jetson, _ = read_jetson(Probes())
    if targets and covers(targets, gpu.sm, jetson=jetson is not None) is False:
        raise MissingPackage(
            f"onnxruntime {version} has kernels for {', '.join(sorted(targets))}, none for this "
            f"GPU, {gpu.name} (sm_{gpu.sm}); edge-devices doctor names a package that has"
        )


def load_graph(path: Path) -> Any:
    """A session of a graph, all of whose nodes run on the GPU.

    Raises:
        BadBundle: a graph that does not load, or that has nodes without a CUDA kernel.
        DoesNotFit: the GPU's memory does not hold its weights.
        MissingPackage: the provider did not load.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # Growing by the requested size, not by powers of two, which can take twice the memory.
    provider = {"enable_cuda_graph": "1", "arena_extend_strategy": "kSameAsRequested"}
    not_found = _preload()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[(_CUDA, provider)])
    except Exception as error:
        if lacks_memory(error):
            raise DoesNotFit(out_of_memory(str(path), _weight_bytes(path))) from None
        raise BadBundle(f"ONNX Runtime cannot load {path} with CUDA: {reason(error)}") from None
    placed = session.get_providers()
    if placed[:1] != [_CUDA]:
        raise MissingPackage(
            f"onnxruntime's CUDA provider did not load ({not_found[0] if not_found else placed}); "
            "its CUDA libraries are missing or of another version: edge-devices doctor names them"
        )
    return session


def _preload() -> list[str]:
    """Load CUDA's libraries where Python packages brought them; returns what was not found.

    onnxruntime prints that. Here the function has a `print` of its own: standard output belongs to
    the whole process, and other threads write to it meanwhile.
    """
    lines: list[str] = []
    preload = onnxruntime.preload_dlls
    if isinstance(preload, FunctionType):
        names = {
            **preload.__globals__,
            "print": lambda *text: lines.append(" ".join(map(str, text))),
        }
        FunctionType(
            preload.__code__, names, argdefs=preload.__defaults__, closure=preload.__closure__
        )()
    else:
        preload()
    return [line for line in lines if line.strip()]


def _weight_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def lacks_memory(error: Exception) -> bool:
    """Whether an error of ONNX Runtime says that the GPU has no memory left."""
    text = str(error).lower()
    return "out of memory" in text or "failed to allocate" in text
