"""ONNX Runtime on an NVIDIA GPU: the cache stays there, decoding is one CUDA graph.

A CUDA graph holds the addresses it was recorded with, so decoding has one binding, whose values
change in place, and another binding and graph when the cache grows or moves.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgelm.bundle import GraphContract
from edgelm.runtime.engines.cuda import Stream, find_gpu
from edgelm.runtime.engines.graph_check import check_capacity, check_ort_graph, vocab_size
from edgelm.runtime.engines.growth import first_rows, rows_for
from edgelm.runtime.engines.onnxruntime.batched_steps import BatchedSteps
from edgelm.runtime.engines.onnxruntime.cuda import provider
from edgelm.runtime.engines.onnxruntime.cuda.bound_step import BoundStep
from edgelm.runtime.engines.onnxruntime.cuda.gpu_neighbors import GpuNeighbors
from edgelm.runtime.engines.onnxruntime.cuda.gpu_pool import GpuPool, GpuTensor, GpuTensors, flat
from edgelm.runtime.engines.onnxruntime.cuda.gpu_texts import GpuTexts
from edgelm.runtime.engines.onnxruntime.host.host_texts import runs_texts
from edgelm.runtime.engines.onnxruntime.place_pool import CacheMemory
from edgelm.runtime.engines.onnxruntime.run_times import RunTimes
from edgelm.runtime.engines.session import (
    BatchedRuns,
    BatchPlace,
    CacheRows,
    Logits,
    TextRuns,
    Tokens,
)
from edgelm.runtime.engines.step_inputs import StepInputs, step_inputs, update_step


class OrtCudaEngine:
    """A bundle's graph on ONNX Runtime's CUDA provider.

    Args:
        folder: the bundle.
        graph: its graph, as the manifest has it.
        capacity: tokens that the cache may grow to hold; at most the bundle's context.
        prefill_chunk: tokens that one run takes.
        sibling_of: another engine of this bundle, whose loaded graph it uses; None: load it.

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
        sibling_of: "OrtCudaEngine | None" = None,
    ) -> None:
        check_capacity(graph.cache, capacity)
        self.capacity, self.chunk = capacity, prefill_chunk
        self.recurrent = None  # devices.kernels.check_shape refuses hybrids
        self.vocab_size = vocab_size(graph)
        self._folder, self._graph = folder, graph
        # Rows that attention reads; also those of the cache, unless the graph fixes these.
        self._rows = first_rows(graph, capacity)
        self._loaded: _Loaded = sibling_of._loaded if sibling_of else _load_checked(folder, graph)
        self._stream = Stream()
        self._pool: GpuPool = (
            sibling_of._pool
            if sibling_of is not None and graph.takes_batches
            else GpuPool(graph.cache, graph.cache.capacity or self._rows, self._stream)
        )
        self._place = self._pool.join()
        self._memory, self._cache = self._pool.memory, self._pool.view(self._place)
        self.batch = self._batch_place(sibling_of) if graph.takes_batches else None
        self.texts: TextRuns | None = None
        if runs_texts(graph):
            loaded = self._loaded
            self.texts = (
                sibling_of.texts if sibling_of else GpuTexts(loaded.session, graph, self._pool)
            )
        self._decode_inputs = step_inputs(np.zeros(1, dtype=np.int64), 0, 1)
        self._decode_step: BoundStep | None = None

    def _batch_place(self, sibling: "OrtCudaEngine | None") -> BatchPlace:
        if sibling is not None and sibling.batch is not None:
            return BatchPlace(sibling.batch.runs, self._place)
        neighbors = GpuNeighbors(
            self._loaded.session,
            self._graph,
            self._pool,
            capacity=self.capacity,
            next_graph_id=self._loaded.graph_ids.__next__,
        )
        runs: BatchedRuns = BatchedSteps(
            neighbors, self._pool, capacity=self.capacity, times=RunTimes()
        )
        return BatchPlace(runs, self._place)

    @property
    def cache_bytes(self) -> int:
        """Memory that the key-value cache takes."""
        return sum(tensor.nbytes for tensor in flat(self._cache))

    def run(
        self, tokens: Tokens, past: int, *, logits: int, cancelled: Callable[[], bool]
    ) -> Logits:
        """Append tokens [T] behind `past` others; return logits [logits, vocab_size]."""
        with self._pool.lock:
            self._reserve(past + len(tokens))
            if len(tokens) == 1:
                return self._decode(int(tokens[0]), past)[:logits]
            step = self._bind(step_inputs(tokens, past, logits), max(1, logits))
            # A copy: what numpy() gives may be a view, and the step ends here.
            rows = step.run()[0, :logits].copy()
            self._append(step.new, past, len(tokens))
            return rows

    def sibling(self) -> "OrtCudaEngine":
        """Another cache over the same weights."""
        return OrtCudaEngine(
            self._folder,
            self._graph,
            capacity=self.capacity,
            prefill_chunk=self.chunk,
            sibling_of=self,
        )

    def read_rows(self, count: int) -> CacheRows:
        """The first `count` rows of the cache, copied to the host."""
        with self._pool.lock:
            self._follow_memory()
            tensors = flat(self._cache)
            rows = [_host_rows(tensor, count) for tensor in tensors]
            for tensor, array in zip(tensors, rows, strict=True):
                for head in range(array.shape[1]):
                    self._stream.to_host(
                        array[0, head].ctypes.data,
                        tensor.address + head * tensor.head_bytes,
                        array[0, head].nbytes,
                    )
            self._stream.synchronize()
            return rows

    def write_rows(self, rows: CacheRows) -> None:
        """Write rows over the first ones of the cache."""
        with self._pool.lock:
            self._reserve(max((array.shape[2] for array in rows), default=0))
            whole = [np.ascontiguousarray(array) for array in rows]
            for tensor, array in zip(flat(self._cache), whole, strict=True):
                for head in range(array.shape[1]):
                    self._stream.to_gpu(
                        tensor.address + head * tensor.head_bytes,
                        array[0, head].ctypes.data,
                        array[0, head].nbytes,
                    )
            self._stream.synchronize()

    def close(self) -> None:
        """Release the graph and the cache."""
        self._decode_step = self.batch = self.texts = None
        self._loaded = _Loaded(None, itertools.count())
        self._cache, self._memory = [], CacheMemory([], 0, ())
        self._pool.leave(self._place)

    def _decode(self, token: int, past: int) -> Logits:
        if self._decode_step is None:
            # Read only while the graph is recorded: so it is the largest value that it can have.
            # How far the cache is filled, the kernels read from `last_position`.
            total = {"total_length": np.array(self._rows, dtype=np.int32)}
            # A recorded graph has the addresses of its cache: each place and size has its own.
            graph_id = next(self._loaded.graph_ids)
            self._decode_step = self._bind(self._decode_inputs | total, 1, graph_id)
        update_step(self._decode_inputs, token, past)
        self._decode_step.update(self._decode_inputs)
        rows: Logits = self._decode_step.run()[0]
        self._append(self._decode_step.new, past, 1)
        return rows

    def _reserve(self, tokens: int) -> None:
        """Make room for `tokens`; what is in the cache stays there."""
        self._follow_memory()
        if tokens > self._rows:
            rows = rows_for(tokens, self.capacity)
            if self._graph.cache.capacity is None:
                self._pool.grow(rows)
                self._follow_memory()
            self._rows = rows
            self._decode_step = None
        self._pool.wrote(self._place, tokens)

    def _follow_memory(self) -> None:
        """Use the cache where it is now: a sibling that grew has moved it."""
        memory = self._pool.memory
        if memory is not self._memory:
            self._memory, self._cache = memory, self._pool.view(self._place)
            if self._graph.cache.capacity is None:
                self._rows = memory.rows
            self._decode_step = None

    def _bind(self, inputs: StepInputs, logits: int, graph_id: int | None = None) -> BoundStep:
        count = inputs["tokens"].size
        if "cache_positions" in self._graph.inputs:
            inputs = inputs | {"cache_positions": np.arange(self._rows, dtype=np.int64)}
        new: GpuTensors = self._cache
        if self._graph.cache.update == "append":
            new = self._pool.reserve(1, count, "new rows")
        shape = (1, logits, self.vocab_size)
        return BoundStep(
            self._loaded.session,
            self._graph,
            inputs,
            self._cache,
            new,
            logits=shape,
            graph_id=graph_id,
        )

    def _append(self, new: GpuTensors, past: int, count: int) -> None:
        """Copy what the graph gave behind the rows of the cache, where it did not do so itself."""
        if new is self._cache:
            return
        for source, target in zip(flat(new), flat(self._cache), strict=True):
            self._stream.copy_rows(
                target.address + past * target.row_bytes,
                source.address,
                pitches=(target.head_bytes, source.head_bytes),
                width=count * source.row_bytes,
                rows=source.shape[1],
            )
        self._stream.synchronize()


class _Loaded(NamedTuple):
    """A graph on the GPU, and the numbers of the CUDA graphs that its engines record."""

    session: Any
    graph_ids: Iterator[int]


def _load_checked(folder: Path, graph: GraphContract) -> _Loaded:
    provider.check_onnxruntime(find_gpu())
    path = folder / graph.file
    session = provider.load_graph(path)
    check_ort_graph(session, graph, graph.parts[0], path)
    return _Loaded(session, itertools.count(1))


def _host_rows(tensor: GpuTensor, count: int) -> npt.NDArray[Any]:
    """Memory for the first rows of a place; 16-bit and 8-bit floats as unsigned integers."""
    _, heads, _, dim = tensor.shape
    return np.empty((1, heads, count, dim), dtype=f"u{tensor.item_bytes}")
