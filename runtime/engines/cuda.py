"""The few calls of the CUDA runtime that a session on a GPU makes, each checked.

They go through cuda-bindings, NVIDIA's own binding, which brings the runtime with it: only the
driver must be there. Memory frees itself when the last array over it is gone.
"""

import contextlib
import functools
import importlib
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgelm.cli import format_bytes
from edgelm.errors import DoesNotFit, EdgeLMError, MissingPackage

# cudaError_t; cuda-bindings reports the first also where there is no driver at all.
_OUT_OF_MEMORY, _NO_DRIVER, _NO_DEVICE = 2, 35, 100
_NOT_INSTALLED = (
    "no CUDA driver was found: install NVIDIA's driver until nvidia-smi lists the GPU (a container "
    "needs --gpus all, on a Jetson --runtime nvidia)"
)
# From 12.9 on cuda-bindings contains the CUDA runtime of its version, which a Jetson's older driver
# refuses (docs/jetson.md); 12.8.0, the first for CUDA 12, calls the driver itself.
_WITHOUT_FITTING_RUNTIME, _WITHOUT_RUNTIME = range(12000, 12090), "12.8.0"


class Gpu(NamedTuple):
    """A GPU: `sm` is its compute capability times ten."""

    name: str
    sm: int


def find_gpu() -> Gpu:
    """The GPU that CUDA puts first.

    Raises:
        MissingPackage: no binding, no driver, or no GPU.
    """
    if _call("cudaGetDeviceCount") == 0:
        raise MissingPackage(_no_gpu())
    kinds = _binding().cudaDeviceAttr
    major = _call("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMajor, 0)
    minor = _call("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMinor, 0)
    name = _call("cudaGetDeviceProperties", 0).name
    return Gpu(name.decode(errors="replace").rstrip("\0"), 10 * major + minor)


def free_memory() -> tuple[int, int]:
    """Bytes of GPU memory that are free, and all of it."""
    free, total = _call("cudaMemGetInfo")
    return int(free), int(total)


class Memory:
    """GPU memory, aligned to 256 bytes.

    Args:
        size: bytes.
        what: what it is for, in words; an error says so.
    """

    def __init__(self, size: int, what: str) -> None:
        self.size = size
        status, address = _binding().cudaMalloc(size)
        if int(status) == _OUT_OF_MEMORY:
            raise DoesNotFit(out_of_memory(what, size))
        _check("cudaMalloc", status)
        self.address = int(address)
        self.free = weakref.finalize(self, _release, "cudaFree", self.address)


class HostMemory:
    """Pinned memory of the machine, which the GPU copies from and to without waiting."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.address = int(_call("cudaMallocHost", size))
        weakref.finalize(self, _release, "cudaFreeHost", self.address)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """As numpy reads it: an array over this memory keeps it alive."""
        data = (self.address, False)
        return {"version": 3, "shape": (self.size,), "typestr": "|u1", "data": data}

    def array(self, dtype: npt.DTypeLike, *, offset: int = 0, count: int = 1) -> npt.NDArray[Any]:
        """A flat array over a part of it."""
        end = offset + count * np.dtype(dtype).itemsize
        return np.asarray(self)[offset:end].view(dtype)


class Stream:
    """A queue of work, which runs in order."""

    def __init__(self) -> None:
        flag = _binding().cudaStreamNonBlocking
        self._stream = _call("cudaStreamCreateWithFlags", flag)
        self.handle = int(self._stream)
        self.close = weakref.finalize(self, _release, "cudaStreamDestroy", self._stream)

    def to_gpu(self, target: int, source: int, size: int) -> None:
        """Copy `size` bytes between addresses."""
        self._copy(target, source, size, "cudaMemcpyHostToDevice")

    def to_host(self, target: int, source: int, size: int) -> None:
        """Copy `size` bytes between addresses."""
        self._copy(target, source, size, "cudaMemcpyDeviceToHost")

    def within_gpu(self, target: int, source: int, size: int) -> None:
        """Copy `size` bytes between addresses."""
        self._copy(target, source, size, "cudaMemcpyDeviceToDevice")

    def copy_rows(
        self, target: int, source: int, *, pitches: tuple[int, int], width: int, rows: int
    ) -> None:
        """Copy rows of `width` bytes on the GPU; pitches: target's and source's, in bytes."""
        kind = _binding().cudaMemcpyKind.cudaMemcpyDeviceToDevice
        to, of = pitches
        _call("cudaMemcpy2DAsync", target, to, source, of, width, rows, kind, self._stream)

    def zero(self, address: int, size: int) -> None:
        """Fill GPU memory with zeros."""
        _call("cudaMemsetAsync", address, 0, size, self._stream)

    def synchronize(self) -> None:
        """Wait until all work is done; errors in it come out here."""
        _call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> "Graph":
        """Record what `work` queues, without running it.

        Raises:
            EdgeLMError: something in it cannot be recorded; the stream is usable again.
        """
        mode = _binding().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            with contextlib.suppress(EdgeLMError):
                _call("cudaGraphDestroy", _call("cudaStreamEndCapture", self._stream))
            raise
        return Graph(_call("cudaStreamEndCapture", self._stream))

    def launch(self, graph: "Graph") -> None:
        """Queue recorded work."""
        _call("cudaGraphLaunch", graph.executable, self._stream)

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        direction = getattr(_binding().cudaMemcpyKind, kind)
        _call("cudaMemcpyAsync", target, source, size, direction, self._stream)


class Graph:
    """Recorded work, ready to be launched with one call; it holds the addresses of its making."""

    def __init__(self, recorded: Any) -> None:
        try:
            self.executable = _call("cudaGraphInstantiate", recorded, 0)
        finally:
            _release("cudaGraphDestroy", recorded)
        self.close = weakref.finalize(self, _release, "cudaGraphExecDestroy", self.executable)


def out_of_memory(what: str, size: int) -> str:
    """A message: how much memory was requested, how much is free."""
    message = f"{what} needs {format_bytes(size)} of GPU memory"
    with contextlib.suppress(EdgeLMError):
        free, total = free_memory()
        message += f", {format_bytes(free)} of {format_bytes(total)} are free"
    return f"{message}; close what else uses the GPU, or export with a smaller --context"


@functools.cache
def _binding() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingPackage(
            f"running on an NVIDIA GPU needs the package cuda-bindings ({error}); pip install "
            "cuda-bindings, of the major version of the driver's CUDA (nvidia-smi shows it)"
        ) from None


def _call(name: str, *arguments: Any) -> Any:
    """What a function gives beside its status: nothing, a value, or a tuple."""
    try:
        status, *values = getattr(_binding(), name)(*arguments)
    except RuntimeError as error:  # cuda-bindings up to 12.8, where there is no driver
        raise MissingPackage(f"{_NOT_INSTALLED}; cuda-bindings reports: {error}") from None
    _check(name, status)
    return values[0] if len(values) == 1 else tuple(values)


def _check(name: str, status: Any) -> None:
    code = int(status)
    if code == 0:
        return
    if code in (_NO_DRIVER, _NO_DEVICE):
        raise MissingPackage(_no_driver() if code == _NO_DRIVER else _no_gpu())
    _, text = _binding().cudaGetErrorString(status)
    raise EdgeLMError(f"{name} failed with CUDA error {code}: {text.decode(errors='replace')}")


def _no_driver() -> str:
    _, version = _binding().cudaDriverGetVersion()  # 0 without a driver
    if not version:
        return _NOT_INSTALLED
    installed, needed = (
        f"{number // 1000}.{number % 1000 // 10}"
        for number in (version, _binding().cudaRuntimeGetVersion()[1])
    )
    fitting = _WITHOUT_RUNTIME if version in _WITHOUT_FITTING_RUNTIME else f"{installed}.*"
    return (
        f"the driver is for CUDA {installed}, cuda-bindings for CUDA {needed}; upgrade the driver, "
        f"or: pip install 'cuda-bindings=={fitting}'"
    )


def _no_gpu() -> str:
    return (
        "CUDA sees no GPU: nvidia-smi must list one, and CUDA_VISIBLE_DEVICES must not hide it (a "
        "container needs --gpus all, on a Jetson --runtime nvidia)"
    )


def _release(name: str, handle: Any) -> None:
    """Free something; at the end of a process CUDA may be gone before it."""
    with contextlib.suppress(Exception):
        getattr(_binding(), name)(handle)
