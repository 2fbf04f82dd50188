"""Opening a compiled engine with TensorRT or TensorRT-RTX, whose Python modules are nearly alike.

Written for TensorRT 10.3, 10.13, 10.16 and 11.4 and for TensorRT-RTX 1.7: where their interfaces
differ there is a function for it. An engine is native code: its bytes are hashed once they are
mapped, and only those that this machine trusts are given to TensorRT.
"""

import logging
import mmap
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgelm.bundle import CompiledEngine, EngineFile, GraphContract, GraphSegment
from edgelm.bundle.paths import inside, open_plain
from edgelm.devices.tensorrt_versions import RTX, TENSORRT, load_module
from edgelm.errors import BadBundle, DoesNotFit, EdgeLMError
from edgelm.files.bounded_read import read_bounded
from edgelm.files.staging import replace_file
from edgelm.reasons import one_line, reason
from edgelm.runtime.engines.cuda import Gpu, Memory, Stream, out_of_memory
from edgelm.runtime.engines.graph_check import Tensor, check_tensors
from edgelm.runtime.engines.trust import is_trusted, trust

log = logging.getLogger(__name__)


_TITLES = {TENSORRT: "TensorRT", RTX: "TensorRT-RTX"}
_MAX_KERNELS_BYTES = 1 << 30
# TensorRT's names of types, by ours.
_TYPES = {
    "INT64": "int64",
    "INT32": "int32",
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
}


def load_library(engine: CompiledEngine) -> Any:
    """The module that runs an engine.

    Raises:
        MissingPackage: it is not installed.
        BadBundle: it is of another version than compiled the engine.
    """
    if engine.name not in _TITLES:
        raise BadBundle(
            f"{engine.file} is for {engine.name!r}; known: {', '.join(_TITLES)}; upgrade edgelm"
        )
    module = load_module(engine.name)
    version = str(module.__version__)
    # TensorRT-RTX checks versions itself: see `_unreadable`.
    if engine.name == TENSORRT and version != engine.version:
        raise BadBundle(
            f"{engine.file} was compiled by TensorRT {engine.version}, installed is {version}, and "
            "no other version runs it; compile it again: edge-export --finalize BUNDLE"
        )
    return module


def check_gpu(engine: CompiledEngine, gpu: Gpu) -> None:
    """Raise BadBundle where an engine is for other GPUs."""
    if engine.compute_capabilities and gpu.sm not in engine.compute_capabilities:
        made_for = ", ".join(f"sm_{sm}" for sm in engine.compute_capabilities)
        raise BadBundle(
            f"{engine.file} was compiled for {made_for}, this GPU ({gpu.name}) is sm_{gpu.sm}; "
            "compile it here: edge-export --finalize BUNDLE"
        )


class LoadedEngine:
    """A deserialized engine of a graph, or of a segment.

    The first context is for `prefill`, the second for `decode`, each with the profile for it. They
    need a workspace of at least `workspace_bytes`, and may share it, since one at a time runs.
    `captures_graphs`: the library makes CUDA graphs of its own.
    """

    def __init__(
        self, folder: Path, engine: CompiledEngine, part: EngineFile, module: Any, stream: Stream
    ) -> None:
        self.path = inside(folder, part.file)
        self.captures_graphs = engine.name == RTX
        self._module = module
        self._log = _logger(module)
        self._runtime = module.Runtime(self._log)
        self._engine = self._deserialize(engine)
        profiles = (0, min(engine.profiles, self._engine.num_optimization_profiles) - 1)
        self.workspace_bytes = max(_workspace_bytes(self._engine, one) for one in profiles)
        self._kernels = None
        if self.captures_graphs and part.runtime_cache:
            self._kernels = _Kernels(inside(folder, part.runtime_cache), module)
        self.prefill, self.decode = (
            self._context(profile, stream, decodes=decodes)
            for profile, decodes in zip(profiles, (False, True), strict=True)
        )

    def use_workspace(self, memory: Memory) -> None:
        """Let both contexts work in this memory."""
        for context in (self.prefill, self.decode):
            if hasattr(context, "set_device_memory"):
                context.set_device_memory(memory.address, memory.size)
            else:
                context.device_memory = memory.address

    def check_tensors(self, graph: GraphContract, part: GraphSegment) -> None:
        """Raise BadBundle unless the engine has the inputs and outputs of the manifest."""
        names = [self._engine.get_tensor_name(n) for n in range(self._engine.num_io_tensors)]
        given = {name: self._tensor(name) for name in names}
        takes = self._module.TensorIOMode.INPUT
        inputs = {name for name in names if self._engine.get_tensor_mode(name) == takes}
        check_tensors(
            graph,
            part,
            {name: tensor for name, tensor in given.items() if name in inputs},
            {name: tensor for name, tensor in given.items() if name not in inputs},
            f"{self.path}, compiled from another graph (edge-export --finalize BUNDLE),",
        )

    def _tensor(self, name: str) -> Tensor:
        kind = str(self._engine.get_tensor_dtype(name)).rpartition(".")[2]
        shape = tuple(
            None if size < 0 else int(size) for size in self._engine.get_tensor_shape(name)
        )
        return Tensor(_TYPES.get(kind, kind), shape)

    def max_profile_size(self, name: str) -> int:
        """The largest size, in the prefill profile, of the last axis of an input."""
        _, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        return int(tuple(largest)[-1])

    def check(self, accepted: bool, what: str) -> None:
        """Raise what TensorRT logged unless it accepted a call."""
        if not accepted:
            raise EdgeLMError(f"{self.path}: {what} failed: {self._first_error()}")

    def close(self) -> None:
        """Release it, and store the kernels that were compiled meanwhile."""
        if self._kernels is not None:
            self._kernels.save()
        # Contexts before their engine, and that before its runtime.
        self.prefill = self.decode = self._kernels = None
        self._engine = None
        self._runtime = None

    def _deserialize(self, engine: CompiledEngine) -> Any:
        try:
            with (
                open_plain(self.path) as file,
                # Mapped: the file's pages need not stay beside the engine's own copy.
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                self._check_trusted(data, engine)
                found = self._runtime.deserialize_cuda_engine(data)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise BadBundle(f"{self.path} cannot be read: {reason(error)}; {_AGAIN}") from None
        if found is None:
            self._unreadable(engine)
        return found

    def _check_trusted(self, data: mmap.mmap, engine: CompiledEngine) -> None:
        """Raise BadBundle unless these very bytes are trusted: the manifest is only a claim."""
        if not is_trusted(sha256(data).hexdigest()):
            raise BadBundle(
                f"{self.path} is not an engine that this machine compiled or trusts (the manifest "
                f"says it is from {engine.machine}), and an engine is native code that runs with "
                "your rights; compile it here: edge-export --finalize BUNDLE, or, if you trust "
                "where it is from: edge-export --trust BUNDLE"
            )

    def _unreadable(self, engine: CompiledEngine) -> None:
        lacks_memory = any(re.search("(?i)out ?of ?memory", it) for it in self._log.errors)
        cause = self._first_error()
        if lacks_memory:
            raise DoesNotFit(out_of_memory(str(self.path), self.path.stat().st_size))
        raise BadBundle(
            f"{self.path} was compiled by {_TITLES[engine.name]} {engine.version}; "
            f"{self._module.__version__} cannot load it: {cause}; {_AGAIN}"
        )

    def _context(self, profile: int, stream: Stream, *, decodes: bool) -> Any:
        strategy = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        how = strategy
        if self.captures_graphs:
            how = self._runtime_config(decodes=decodes)
            how.set_execution_context_allocation_strategy(strategy)
        context = self._engine.create_execution_context(how)
        if context is None:
            raise EdgeLMError(
                f"{self.path}: TensorRT cannot create a context: {self._first_error()}"
            )
        self.check(context.set_optimization_profile_async(profile, stream.handle), "its profile")
        stream.synchronize()
        return context

    def _runtime_config(self, *, decodes: bool) -> Any:
        """Settings of TensorRT-RTX: while decoding it replays whole graphs.

        A graph recorded by us would keep, for good, the generic kernels that run until those for
        the shape are compiled; its own are recorded after that.
        """
        config = self._engine.create_runtime_config()
        if decodes:
            kinds = self._module.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
            config.cuda_graph_strategy = self._module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._kernels is not None:
            self._kernels.attach(config)
        return config

    def _first_error(self) -> str:
        # The first is the cause, what follows are its consequences.
        first = next(iter(self._log.errors), "it gives no reason")
        self._log.errors.clear()
        return one_line(first)


_AGAIN = "copy the bundle again, or compile the engine again: edge-export --finalize BUNDLE"


class _Kernels:
    """Kernels that TensorRT-RTX compiles while it runs, stored in a file for the next time."""

    def __init__(self, path: Path, module: Any) -> None:
        self.path = path
        self._cache: Any = None
        self._saved = b""

    def attach(self, config: Any) -> None:
        """Let a context use them; all contexts share one cache."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._saved = self._stored()
            if self._saved and not is_trusted(sha256(self._saved).hexdigest()):
                # Kernels are native code like the engine, and came with the bundle.
                log.info("%s was not written here; its kernels are compiled again", self.path)
                self._saved = b""
            # It refuses what another driver, GPU or version made, and starts empty.
            if self._saved and not self._cache.deserialize(self._saved):
                log.info("%s was made elsewhere; its kernels are compiled again", self.path)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write them atomically if they changed; a folder may be read-only."""
        if self._cache is None:
            return
        data = bytes(self._cache.serialize())
        if data == self._saved:
            return
        try:
            trust(sha256(data).hexdigest())
            replace_file(self.path, data)
        except (OSError, EdgeLMError) as error:
            log.debug("kernels are not stored: %s", error)

    def _stored(self) -> bytes:
        try:
            return read_bounded(self.path, at_most=_MAX_KERNELS_BYTES)
        except FileNotFoundError:  # the first time
            return b""
        except BadBundle as error:
            log.info("%s; the kernels are compiled again", error)
            return b""


def _workspace_bytes(engine: Any, profile: int) -> int:
    # 11 has no other than v2, which 10.3 may lack.
    if hasattr(engine, "get_device_memory_size_for_profile_v2"):
        return int(engine.get_device_memory_size_for_profile_v2(profile))
    return int(engine.get_device_memory_size_for_profile(profile))


def _logger(module: Any) -> Any:
    """A logger for TensorRT, which gives the reasons of failures in its log only."""
    severity = module.ILogger.Severity
    errors = (severity.INTERNAL_ERROR, severity.ERROR)

    def write(logger: Any, kind: Any, message: str) -> None:
        if kind in errors:
            logger.errors.append(message)  # becomes part of an exception of ours
        elif kind == severity.WARNING:
            log.debug("%s", message)  # mostly advice for those who build engines

    logger = type("Logger", (module.ILogger,), {"log": write})()
    logger.errors = []
    return logger
