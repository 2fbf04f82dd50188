"""The ONNX Runtime session: one preallocated cache, bound in place, and no copies per token.

Past and present of a layer are bound to the same memory, so a token costs one row written, not a
cache copied. Decoding reuses one binding: only three numbers in bound memory change per step.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.bundle import Manifest
from edgelm.devices.detection.threads import physical_cores
from edgelm.errors import BadBundle, DoesNotFit
from edgelm.reasons import reason
from edgelm.runtime.engines.chunked import Cancelled, ChunkedSession, check_capacity
from edgelm.runtime.engines.graph_check import check_ort_graph
from edgelm.runtime.engines.interruptible import run_interruptible
from edgelm.runtime.engines.onnxruntime_module import LazyOnnxRuntime
from edgelm.runtime.engines.session import Logits, Tokens

onnxruntime = LazyOnnxRuntime(
    "no engine installed: this bundle runs on ONNX Runtime; pip install 'edgelm[cpu]'"
)

# numpy has no bfloat16: its bits travel as uint16.
_CACHE_DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16, "int8": np.int8}
_Cache = list[tuple[Any, Any]]
_CPU = "CPUExecutionProvider"
# Long enough to bridge the sampling between two tokens, short enough to leave an idle device cool.
_SPIN_MICROSECONDS = "2000"
# Tokens from which a run may take seconds on a small device; below, a thread is not worth starting.
_LONG_RUN = 16


class OrtSession(ChunkedSession):
    """A bundle's graph on ONNX Runtime's CPU provider.

    Args:
        folder: the bundle.
        manifest: its manifest.
        capacity: tokens that the cache holds; at most the bundle's context.
        threads: threads for matrix products; None means the physical cores.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, *, capacity: int, threads: int | None = None
    ) -> None:
        super().__init__()
        self.capacity = capacity
        self.vocab_size = manifest.spec.vocab_size
        self.chunk = manifest.limits.prefill_chunk
        self._graph = manifest.graph
        fused = manifest.graph.dialect == "ort"
        _check_cache_type(manifest.graph.cache.dtype)
        path = folder / manifest.graph.file
        self._session = _load(path, threads, fused=fused)
        check_ort_graph(self._session, manifest.graph, path)
        self._decode_rows: Logits = np.zeros((1, 1, self.vocab_size), dtype=np.float32)
        self._scalars = _Scalars()
        self._cache = self._allocate_cache()
        self._decode_new = self._allocate_new(1)
        self._decode_binding = self._bind(
            {
                "tokens": self._scalars.token,
                "positions": self._scalars.position,
                "logits_positions": self._scalars.row,
            },
            self._decode_rows,
            self._decode_new,
        )

    @property
    def cache_bytes(self) -> int:
        """Memory that the key-value cache takes."""
        return sum(array.nbytes for array in self._arrays)

    def _release(self) -> None:
        for name in ("_decode_binding", "_decode_new", "_cache", "_session"):
            self.__dict__.pop(name, None)

    def _step(self, token: int) -> Logits:
        self._scalars.token[0, 0] = token
        self._scalars.row[0] = 0
        self._set_position(1)
        self._execute(self._decode_binding, None)
        self._append(self._decode_new, 1)
        row: Logits = self._decode_rows[0]
        return row

    def _run(self, chunk: Tokens, wanted: Tokens, *, owed: bool) -> Logits:
        count = len(chunk)
        rows: Logits = np.empty((1, len(wanted), self.vocab_size), dtype=np.float32)
        self._set_position(count)
        new = self._allocate_new(count)
        given = {
            "tokens": np.ascontiguousarray(chunk)[None],
            "positions": np.arange(self.length, self.length + count)[None],
            "logits_positions": wanted,
        }
        binding = self._bind(given, rows, new)
        if count < _LONG_RUN:
            self._execute(binding, None)
        else:
            self._execute_interruptible(binding)
        self._append(new, count)
        first: Logits = rows[0]
        return first

    def _execute(self, binding: Any, options: Any) -> None:
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # the base of what ONNX Runtime raises
            if isinstance(error, MemoryError) or "allocate memory" in str(error):
                raise DoesNotFit(f"not enough memory to run this bundle: {reason(error)}") from None
            raise BadBundle(
                f"ONNX Runtime cannot run this bundle's graph: {reason(error)}; check "
                "its files (edge-export --verify), then export it again"
            ) from None

    def _execute_interruptible(self, binding: Any) -> None:
        options = onnxruntime.RunOptions()

        def stop() -> None:
            options.terminate = True

        call = partial(self._execute, binding, options)
        if run_interruptible(call, stop, self._stop_asked):
            self._check_open()
            raise Cancelled

    def _set_position(self, count: int) -> None:
        self._scalars.past_length[0] = self.length
        self._scalars.position[0, 0] = self.length
        self._scalars.last_position[0] = self.length + count - 1
        self._scalars.total_length[...] = self.length + count

    def _bind(self, given: dict[str, Any], logits: Logits, new: _Cache) -> Any:
        """Bind what is given by role, the scalars, the cache and the outputs."""
        scalars = {
            "past_length": self._scalars.past_length,
            "last_position": self._scalars.last_position,
            "total_length": self._scalars.total_length,
        }
        arrays = {**given, **scalars}
        binding = self._session.io_binding()
        for role, tensor in self._graph.inputs.items():
            _bind_input(binding, tensor.name, arrays[role])
        _bind_output(binding, self._graph.outputs["logits"].name, logits)
        for layer, past, present in zip(self._graph.cache.layers, self._cache, new, strict=True):
            _bind_input(binding, layer.past_key, past[0])
            _bind_input(binding, layer.past_value, past[1])
            _bind_output(binding, layer.present_key, present[0])
            _bind_output(binding, layer.present_value, present[1])
        return binding

    def _allocate_new(self, count: int) -> _Cache:
        """Where the graph writes the rows of `count` tokens: the cache, or memory of their own."""
        if self._graph.cache.update == "in_place":
            return self._cache
        return self._allocate(count)

    def _append(self, new: _Cache, count: int) -> None:
        if new is self._cache:
            return
        rows = slice(self.length, self.length + count)
        for past, present in zip(self._cache, new, strict=True):
            past[0][:, :, rows] = present[0]
            past[1][:, :, rows] = present[1]

    def _allocate_cache(self) -> _Cache:
        check_capacity(self._graph.cache, self.capacity)
        return self._allocate(self.capacity)

    def _allocate(self, rows: int) -> _Cache:
        cache = self._graph.cache
        shape = (1, cache.num_key_value_heads, rows, cache.head_dim)
        dtype = _CACHE_DTYPES[cache.dtype]
        try:
            # zeros, not empty: untouched pages of a large cache then cost no memory.
            return [(np.zeros(shape, dtype), np.zeros(shape, dtype)) for _ in cache.layers]
        except (MemoryError, ValueError):  # ValueError: beyond what an array can have
            raise DoesNotFit(
                f"there is no memory for a cache of {rows} tokens; load it with max_memory, or "
                "export with a shorter --context"
            ) from None

    @property
    def _arrays(self) -> list[Any]:
        return [array for pair in self._cache for array in pair]


class _Scalars:
    """The small inputs, in memory that stays bound."""

    def __init__(self) -> None:
        self.token = np.zeros((1, 1), dtype=np.int64)
        self.row = np.zeros(1, dtype=np.int64)
        self.position = np.zeros((1, 1), dtype=np.int64)
        self.past_length = np.zeros(1, dtype=np.int64)
        self.last_position = np.zeros(1, dtype=np.int32)
        self.total_length = np.zeros((), dtype=np.int32)


def _check_cache_type(dtype: str) -> None:
    if dtype not in _CACHE_DTYPES:
        raise BadBundle(
            f"the cache is of type {dtype}, ONNX Runtime's CPU provider has "
            f"{', '.join(_CACHE_DTYPES)}; export the bundle again"
        )


def _load(path: Path, threads: int | None, *, fused: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    if fused:
        # Only constant folding is left to do, and searching for more takes a tenth of the load.
        options.graph_optimization_level = level.ORT_ENABLE_BASIC
    else:
        # Fused, a step takes a sixth of the time: without it every run dequantizes all weights.
        # Products stay in fp32, as the graph says; level 4 would round their inputs to int8.
        options.graph_optimization_level = level.ORT_ENABLE_ALL
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.add_session_config_entry("session.prepack.enable_parallel", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[_CPU])
    except Exception as error:
        raise BadBundle(f"ONNX Runtime cannot load {path}: {reason(error)}") from None
    if session.get_providers() != [_CPU]:
        raise BadBundle(f"{path} was placed on {session.get_providers()}, expected {[_CPU]}")
    return session


def _bind_input(binding: Any, name: str, array: Any) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_output(binding: Any, name: str, array: Any) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
