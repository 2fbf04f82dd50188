"""A GPU and a TensorRT of our own, for what sessions do around them.

"GPU memory" is this process's, filled with NaN, and every address is checked. Work runs when the
stream is waited for, not before, so that memory that is reused too early shows. An engine is a
file that names an ONNX graph, which ONNX Runtime runs on the bound addresses.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime

Work = Callable[[], object]
TITLE = b"engine of "
_NAMES = {"tensor(int64)": "INT64", "tensor(float)": "FLOAT", "tensor(float16)": "HALF"}
_TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16}


class FakeCuda:
    """The part of cuda.bindings.runtime that edgelm uses."""

    cudaDeviceAttr = SimpleNamespace(  # noqa: N815
        cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76
    )
    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    TEXTS: ClassVar = {2: b"out of memory", 35: b"no driver", 700: b"illegal address"}

    def __init__(self, *, sm: int = 89, memory: int = 1 << 30, driver: int = 13000) -> None:
        self.sm, self.total, self.driver = sm, memory, driver
        self.blocks: dict[int, Any] = {}
        self.queue: list[Work] = []
        self.recording: list[Work] | None = None
        self.launches = 0
        self.status = {"cudaGetDeviceCount": 0 if driver else 35}

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        work = getattr(type(self), f"do_{name}")

        def call(*arguments: Any) -> tuple[Any, ...]:
            if code := self.status.get(name, 0):
                return code, None
            value = work(self, *arguments)
            if value is None:
                return (0,)
            return (0, *value) if isinstance(value, tuple) else (0, value)

        return call

    def put(self, work: Work) -> None:
        (self.queue if self.recording is None else self.recording).append(work)

    def within(self, address: int, size: int) -> bool:
        return any(at <= address and address + size <= at + len(b) for at, b in self.blocks.items())

    def do_cudaGetErrorString(self, code: int) -> bytes:  # noqa: N802
        return self.TEXTS.get(code, b"?")

    def do_cudaDriverGetVersion(self) -> int:  # noqa: N802
        return self.driver

    def do_cudaRuntimeGetVersion(self) -> int:  # noqa: N802
        return 13050

    def do_cudaGetDeviceCount(self) -> int:  # noqa: N802
        return 1

    def do_cudaDeviceGetAttribute(self, kind: int, device: int) -> int:  # noqa: N802
        return self.sm // 10 if kind == 75 else self.sm % 10

    def do_cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        return SimpleNamespace(name=b"Fake RTX 4060")

    def do_cudaMemGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return self.total - sum(len(block) for block in self.blocks.values()), self.total

    def do_cudaMallocHost(self, size: int) -> int:  # noqa: N802
        whole = np.full(size + 256, 0xFF, dtype=np.uint8)
        skip = -whole.ctypes.data % 256
        block = whole[skip : skip + size]
        self.blocks[block.ctypes.data] = block
        return int(block.ctypes.data)

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:  # noqa: N802
        if size > self.do_cudaMemGetInfo()[0]:
            return 2, None
        return 0, self.do_cudaMallocHost(size)

    def do_cudaFree(self, address: int) -> None:  # noqa: N802
        assert not self.queue, "freed while there is work"
        del self.blocks[address]

    do_cudaFreeHost = do_cudaFree  # noqa: N815

    def do_cudaStreamCreateWithFlags(self, flags: int) -> int:  # noqa: N802
        return 7

    def do_cudaStreamDestroy(self, stream: int) -> None:  # noqa: N802
        pass

    def do_cudaStreamSynchronize(self, stream: int) -> None:  # noqa: N802
        assert self.recording is None
        queue, self.queue = self.queue, []
        for work in queue:
            work()

    def do_cudaMemsetAsync(self, at: int, value: int, size: int, stream: int) -> None:  # noqa: N802
        assert self.within(at, size)
        self.put(lambda: ctypes.memset(at, value, size))

    def do_cudaMemcpyAsync(self, to: int, of: int, size: int, kind: int, stream: int) -> None:  # noqa: N802
        assert self.within(to if kind == 1 else of, size)
        self.put(lambda: ctypes.memmove(to, of, size))

    def do_cudaMemcpy2DAsync(self, *given: int) -> None:  # noqa: N802
        to, to_pitch, of, of_pitch, width, rows, kind, _ = given
        assert kind == 3
        assert width <= min(to_pitch, of_pitch)
        assert self.within(to, to_pitch * (rows - 1) + width)
        assert self.within(of, of_pitch * (rows - 1) + width)

        def copy() -> None:
            for row in range(rows):
                ctypes.memmove(to + row * to_pitch, of + row * of_pitch, width)

        self.put(copy)

    def do_cudaStreamBeginCapture(self, stream: int, mode: int) -> None:  # noqa: N802
        assert not self.queue
        self.recording = []

    def do_cudaStreamEndCapture(self, stream: int) -> Any:  # noqa: N802
        recorded, self.recording = self.recording, None
        return recorded

    def do_cudaGraphInstantiate(self, recorded: list[Work], flags: int) -> Any:  # noqa: N802
        return list(recorded)

    def do_cudaGraphDestroy(self, recorded: list[Work]) -> None:  # noqa: N802
        recorded.clear()

    def do_cudaGraphExecDestroy(self, graph: list[Work]) -> None:  # noqa: N802
        graph.clear()

    def do_cudaGraphLaunch(self, graph: list[Work], stream: int) -> None:  # noqa: N802
        self.launches += 1
        self.queue.extend(graph)


class FakeTensorRT:
    """The part of `tensorrt` that edgelm uses; with `rtx`, of `tensorrt_rtx`."""

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    def __init__(self, cuda: FakeCuda, version: str, *, chunk: int, rtx: bool = False) -> None:
        self.cuda, self.__version__, self.chunk, self.rtx = cuda, version, chunk, rtx
        self.capturable = True
        self.contexts: list[_Context] = []
        self.complaint = "magicTag failed"

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        def deserialize(data: Any) -> "_Engine | None":
            if not bytes(data).startswith(TITLE):
                logger.log(logger.Severity.ERROR, self.complaint)
                return None
            return _Engine(self, Path(bytes(data)[len(TITLE) :].decode()), logger)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class _Engine:
    num_optimization_profiles = 2

    def __init__(self, module: FakeTensorRT, path: Path, logger: Any) -> None:
        self.module, self.logger = module, logger
        options = onnxruntime.SessionOptions()
        # More would make MatMulNBits of quantized weights, which rounds the activations.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.graph = onnxruntime.InferenceSession(path, options, providers=providers)
        self.tensors = [*self.graph.get_inputs(), *self.graph.get_outputs()]
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, number: int) -> str:
        return str(self.tensors[number].name)

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in {one.name for one in self.graph.get_inputs()} else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return f"DataType.{_NAMES[self.tensor(name).type]}"

    def get_tensor_shape(self, name: str) -> list[int]:
        shape = self.tensor(name).shape
        return [size if isinstance(size, int) else -1 for size in shape]

    def tensor(self, name: str) -> Any:
        return next(one for one in self.tensors if one.name == name)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 1), (1, self.module.chunk), (1, self.module.chunk)]

    def get_device_memory_size_for_profile(self, profile: int) -> int:
        return 1000

    def create_runtime_config(self) -> "_Config":
        return _Config()

    def create_execution_context(self, how: Any) -> "_Context":
        context = _Context(self, how)
        self.module.contexts.append(context)
        return context


class _Config:
    runtime_cache: Any = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        assert strategy == "user"

    def create_runtime_cache(self) -> Any:
        return SimpleNamespace(deserialize=lambda data: True, serialize=lambda: b"kernels")

    def set_runtime_cache(self, cache: Any) -> None:
        self.runtime_cache = cache


class _Context:
    device_memory = 0

    def __init__(self, engine: _Engine, how: Any) -> None:
        self.engine, self.how = engine, how
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile = 0
        self.ran = False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        self.ran = False
        most = 1 if self.profile else self.engine.module.chunk
        named = zip(shape, self.engine.tensor(name).shape, strict=True)
        limits = {"T": most, "P": most}
        fits = all(
            size <= limits.get(it, size) if isinstance(it, str) else size == it
            for size, it in named
        )
        return self.complain(fits, f"{name}: {shape} is not in the profile")

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.module.capturable

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.engine.module.cuda
        if cuda.recording is not None and not self.ran:
            return self.complain(False, "not run before")
        for tensor in self.engine.graph.get_inputs():
            if tensor.name not in self.shapes and any(isinstance(one, str) for one in tensor.shape):
                return self.complain(False, f"{tensor.name} has no shape")
        self.ran = True
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        assert cuda.within(self.device_memory, 1000)
        cuda.put(lambda: self.run(addresses, shapes))
        return True

    def complain(self, fine: bool, message: str) -> bool:
        if not fine:
            self.engine.logger.log(self.engine.logger.Severity.ERROR, message)
        return fine

    def run(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        graph = self.engine.graph
        sizes: dict[Any, int] = {}
        for tensor in graph.get_inputs():
            for name, size in zip(tensor.shape, shapes.get(tensor.name, ()), strict=False):
                assert sizes.setdefault(name, size) == size, f"two sizes of {name}"
        binding = graph.io_binding()
        for tensors, bind in (
            (graph.get_inputs(), binding.bind_input),
            (graph.get_outputs(), binding.bind_output),
        ):
            for tensor in tensors:
                kind = _TYPES[tensor.type]
                shape = tuple(sizes.get(size, size) for size in tensor.shape)
                size = int(np.prod(shape)) * np.dtype(kind).itemsize
                assert self.engine.module.cuda.within(addresses[tensor.name], size)
                bind(tensor.name, "cpu", 0, kind, shape, addresses[tensor.name])
        graph.run_with_iobinding(binding)
