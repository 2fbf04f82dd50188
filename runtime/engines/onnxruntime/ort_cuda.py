"""ONNX Runtime on an NVIDIA GPU: the cache stays there, decoding is one CUDA graph.

ONNX Runtime falls back to the CPU without an error where its CUDA provider does not load, or has
no kernel; here both are errors. A CUDA graph holds the addresses it was recorded with, so decoding
has one binding, whose values change in place, and another binding and graph when the cache grows.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgelm.bundle import GraphContract
from edgelm.devices.checks.nvidia.fatbin import kernel_targets
from edgelm.devices.checks.packages.kernels import covers
from edgelm.devices.checks.packages.providers import CUDA_LIBRARY
from edgelm.devices.detection.jetson import read_jetson
from edgelm.devices.detection.probes import Probes
from edgelm.errors import BadBundle, DoesNotFit, MissingPackage
from edgelm.reasons import reason
from edgelm.runtime.engines.cuda import Gpu, Stream, find_gpu, out_of_memory
from edgelm.runtime.engines.graph_check import check_capacity, check_ort_graph, output, vocab_size
from edgelm.runtime.engines.growth import first_rows, rows_for
from edgelm.runtime.engines.onnxruntime.onnxruntime_module import LazyOnnxRuntime
from edgelm.runtime.engines.session import CacheRows, Logits, Tokens
from edgelm.runtime.engines.step_inputs import StepInputs, step_inputs, update_step

_INSTALL = "pip install 'edgelm[gpu]'"
onnxruntime = LazyOnnxRuntime(
    "no engine installed: this bundle runs on ONNX Runtime with CUDA; on a Jetson edge-devices "
    f"doctor names the package, elsewhere: {_INSTALL}"
)

_CUDA = "CUDAExecutionProvider"
_DEVICE = "cuda"
# Element types as onnx counts them; numpy has neither bfloat16 nor float8 (E4M3).
_CACHE_TYPES = {"fp32": 1, "fp16": 10, "bf16": 16, "int8": 3, "fp8": 17}
_ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
# GroupQueryAttention reads it on the machine's side.
_ON_HOST = frozenset({"total_length"})
_CHANGED_PER_TOKEN = ("tokens", "positions", "past_length", "last_position")
_Cache = list[tuple[Any, Any]]


class OrtCudaEngine:
    """A bundle's graph on ONNX Runtime's CUDA provider.

    Args:
        folder: the bundle.
        graph: its graph, as the manifest has it.
        capacity: tokens that the cache may grow to hold; at most the bundle's context.
        prefill_chunk: tokens that one run takes.
        loaded: the graph as another engine of this bundle has loaded it; None: load it.

    Raises:
        MissingPackage: onnxruntime has no CUDA provider or no kernels for the GPU, or there is no
            driver or GPU.
        BadBundle: a graph that does not load, or that has nodes without a CUDA kernel.
        BadInput: a capacity other than the graph's own.
        DoesNotFit: the GPU's memory does not hold weights and cache.
    """

    def __init__(
        self,
        folder: Path,
        graph: GraphContract,
        *,
        capacity: int,
        prefill_chunk: int,
        loaded: "_Loaded | None" = None,
    ) -> None:
        check_capacity(graph.cache, capacity)
        self.capacity, self.chunk = capacity, prefill_chunk
        self.recurrent = None  # devices.kernels.check_shape refuses hybrids
        self.batch = None  # not built: no graph for it has a batch axis
        self.vocab_size = vocab_size(graph)
        self._folder, self._graph = folder, graph
        self._loaded: _Loaded | None = loaded or _load_checked(folder, graph)
        self._session = self._loaded.session
        self._stream = Stream()
        # Rows that attention reads; also those of the cache, unless the graph fixes these.
        self._rows = first_rows(graph, capacity)
        self._cache = self._new_cache(self._cache_rows)
        self._stream.synchronize()
        self._decode_inputs = step_inputs(np.zeros(1, dtype=np.int64), 0, 1)
        self._decode_step: _Step | None = self._bind_decode()
        # A recorded graph has the addresses of its engine's cache: each size of it has its own.
        self._decode_options = _run_options(str(next(self._loaded.graph_ids)))
        self._prefill_options = _run_options("-1")

    @property
    def cache_bytes(self) -> int:
        """Memory that the key-value cache takes."""
        return sum(value.tensor_size_in_bytes() for value in _flat(self._cache))

    def run(
        self, tokens: Tokens, past: int, *, logits: int, cancelled: Callable[[], bool]
    ) -> Logits:
        """Append tokens [T] behind `past` others; return logits [logits, vocab_size]."""
        self._reserve(past, past + len(tokens))
        if len(tokens) == 1:
            row = self._decode(int(tokens[0]), past)
            return row if logits else row[:0]
        step = self._bind(step_inputs(tokens, past, logits), max(1, logits))
        self._session.run_with_iobinding(step.binding, self._prefill_options)
        self._append(step.new, past, len(tokens))
        if not logits:
            return np.empty((0, self.vocab_size), dtype=np.float32)
        # A copy: what numpy() gives may be a view, and the step ends here.
        rows: Logits = step.logits.numpy()[0].copy()
        return rows

    def sibling(self) -> "OrtCudaEngine":
        """Another cache over the same weights."""
        return OrtCudaEngine(
            self._folder,
            self._graph,
            capacity=self.capacity,
            prefill_chunk=self.chunk,
            loaded=self._loaded,
        )

    def read_rows(self, count: int) -> CacheRows:
        """The first `count` rows of the cache, copied to the host."""
        rows = [self._host_rows(count) for _ in _flat(self._cache)]
        for value, array in zip(_flat(self._cache), rows, strict=True):
            width, pitch = self._row_widths(count)
            for head in range(array.shape[1]):
                self._stream.to_host(
                    array[0, head].ctypes.data, value.data_ptr() + head * pitch, width
                )
        self._stream.synchronize()
        return rows

    def write_rows(self, rows: CacheRows) -> None:
        """Write rows over the first ones of the cache."""
        self._reserve(0, max((array.shape[2] for array in rows), default=0))
        whole = [np.ascontiguousarray(array) for array in rows]
        for value, array in zip(_flat(self._cache), whole, strict=True):
            width, pitch = self._row_widths(array.shape[2])
            for head in range(array.shape[1]):
                self._stream.to_gpu(
                    value.data_ptr() + head * pitch, array[0, head].ctypes.data, width
                )
        self._stream.synchronize()

    def _host_rows(self, count: int) -> npt.NDArray[Any]:
        cache = self._graph.cache
        shape = (1, cache.num_key_value_heads, count, cache.head_dim)
        return np.empty(shape, dtype=f"u{_ITEM_BYTES[cache.dtype]}")

    def _row_widths(self, count: int) -> tuple[int, int]:
        """Bytes of `count` rows of a head, and from a head to the next."""
        row = self._graph.cache.head_dim * _ITEM_BYTES[self._graph.cache.dtype]
        return count * row, self._cache_rows * row

    def close(self) -> None:
        """Release the graph and the cache."""
        self._decode_step = self._session = self._loaded = None
        self._cache = []

    def _decode(self, token: int, past: int) -> Logits:
        step = self._decode_step
        assert step is not None
        update_step(self._decode_inputs, token, past)
        for role in _CHANGED_PER_TOKEN:
            step.update(role, self._decode_inputs[role])
        self._session.run_with_iobinding(step.binding, self._decode_options)
        self._append(step.new, past, 1)
        rows: Logits = step.logits.numpy()[0]
        return rows

    @property
    def _cache_rows(self) -> int:
        return self._graph.cache.capacity or self._rows

    def _reserve(self, past: int, tokens: int) -> None:
        """Make room for `tokens`, of which the first `past` are there.

        Decoding then has another graph.
        """
        if tokens <= self._rows:
            return
        rows = rows_for(tokens, self.capacity)
        if self._graph.cache.capacity is None:
            grown = self._new_cache(rows)
            if past:
                self._copy_rows(self._cache, grown, (self._rows, rows), (0, 0), past)
            self._stream.synchronize()
            self._cache = grown
        self._rows = rows
        self._decode_step = self._bind_decode()
        assert self._loaded is not None
        self._decode_options = _run_options(str(next(self._loaded.graph_ids)))

    def _bind_decode(self) -> "_Step":
        # Read only while the graph is recorded: so it is the largest value that it can have.
        # How far the cache is filled, the kernels read from `last_position`.
        total = {"total_length": np.array(self._rows, dtype=np.int32)}
        return self._bind(self._decode_inputs | total, 1)

    def _new_cache(self, rows: int) -> _Cache:
        cache = self._allocate(rows, "the key-value cache")
        for value in _flat(cache):  # NaN in a masked row would spread
            self._stream.zero(value.data_ptr(), value.tensor_size_in_bytes())
        return cache

    def _bind(self, inputs: StepInputs, logits: int) -> "_Step":
        in_place = self._graph.cache.update == "in_place"
        new = self._cache if in_place else self._allocate(inputs["tokens"].size, "new rows")
        shape = (1, logits, self.vocab_size)
        if "cache_positions" in self._graph.inputs:
            inputs = inputs | {"cache_positions": np.arange(self._rows, dtype=np.int64)}
        return _Step(self._session.io_binding(), self._graph, inputs, shape, self._cache, new)

    def _append(self, new: _Cache, past: int, count: int) -> None:
        """Copy what the graph gave behind the rows of the cache, where it did not do so itself."""
        if new is self._cache:
            return
        self._copy_rows(new, self._cache, (count, self._cache_rows), (0, past), count)
        self._stream.synchronize()

    def _copy_rows(
        self,
        source: _Cache,
        target: _Cache,
        rows: tuple[int, int],
        starts: tuple[int, int],
        count: int,
    ) -> None:
        """Copy `count` rows of each head; `rows` of the two in all, and where they start."""
        cache = self._graph.cache
        row = cache.head_dim * _ITEM_BYTES[cache.dtype]
        for old, new in zip(_flat(source), _flat(target), strict=True):
            self._stream.copy_rows(
                new.data_ptr() + starts[1] * row,
                old.data_ptr() + starts[0] * row,
                pitches=(rows[1] * row, rows[0] * row),
                width=count * row,
                rows=cache.num_key_value_heads,
            )

    def _allocate(self, rows: int, what: str) -> _Cache:
        cache = self._graph.cache
        shape = (1, cache.num_key_value_heads, rows, cache.head_dim)
        kind = _CACHE_TYPES[cache.dtype]
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        try:
            values = [make(shape, kind, _DEVICE, 0) for _ in 2 * cache.layers]
        except Exception as error:
            if not _lacks_memory(error):
                raise
            size = 2 * len(cache.layers) * math.prod(shape) * _ITEM_BYTES[cache.dtype]
            raise DoesNotFit(out_of_memory(what, size)) from None
        return list(zip(values[::2], values[1::2], strict=True))


class _Loaded(NamedTuple):
    """A graph on the GPU, and the numbers of the CUDA graphs that its engines record."""

    session: Any
    graph_ids: Iterator[int]


def _load_checked(folder: Path, graph: GraphContract) -> _Loaded:
    check_onnxruntime(find_gpu())
    if graph.cache.dtype not in _CACHE_TYPES:
        raise BadBundle(
            f"the cache is of type {graph.cache.dtype}, the CUDA provider has "
            f"{', '.join(_CACHE_TYPES)}; export the bundle again"
        )
    path = folder / graph.file
    session = _load(path)
    check_ort_graph(session, graph, graph.parts[0], path)
    return _Loaded(session, itertools.count(1))


class _Step:
    """A binding and what it binds: inputs and logits of a fixed size, the cache, its new rows."""

    def __init__(
        self,
        binding: Any,
        graph: GraphContract,
        inputs: StepInputs,
        logits: tuple[int, ...],
        cache: _Cache,
        new: _Cache,
    ) -> None:
        self.binding = binding
        self.new = new
        self._inputs = {
            role: _value(inputs[role], on_host=role in _ON_HOST) for role in graph.inputs
        }
        for role, tensor in graph.inputs.items():
            binding.bind_ortvalue_input(tensor.name, self._inputs[role])
        self.logits = _value(np.zeros(logits, np.float32))
        binding.bind_ortvalue_output(output(graph).name, self.logits)
        for layer, past, present in zip(graph.cache.layers, cache, new, strict=True):
            binding.bind_ortvalue_input(layer.past_key, past[0])
            binding.bind_ortvalue_input(layer.past_value, past[1])
            binding.bind_ortvalue_output(layer.present_key, present[0])
            binding.bind_ortvalue_output(layer.present_value, present[1])

    def update(self, role: str, values: npt.NDArray[Any]) -> None:
        """Give an input other values, if the graph has it; its address stays."""
        if role in self._inputs:
            self._inputs[role].update_inplace(values)


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


def _load(path: Path) -> Any:
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
        if _lacks_memory(error):
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


def _flat(cache: _Cache) -> list[Any]:
    return [value for pair in cache for value in pair]


def _weight_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def _run_options(graph_id: str) -> Any:
    """Options of a run: which CUDA graph it is, -1 for none."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph_id)
    return options


def _value(array: Any, *, on_host: bool = False) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array, "cpu" if on_host else _DEVICE, 0)


def _lacks_memory(error: Exception) -> bool:
    text = str(error).lower()
    return "out of memory" in text or "failed to allocate" in text
