"""TensorRT and TensorRT-RTX: an engine for each part of a graph, one stream, a cache on the GPU.

Prefill and decode have contexts of their own, and everything that a context reads or writes stays
at one address, so that decoding is one CUDA graph, over all parts, launched again and again. Where
the graph of the bundle writes the cache itself (`update` in_place), present is bound to past; where
it gives the new rows (append), they are copied behind the old ones, outside the CUDA graph, since
their place changes.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgelm.bundle import CompiledEngine, GraphContract
from edgelm.errors import BadBundle, BadInput, EdgeLMError
from edgelm.runtime.engines.cuda import Graph, HostMemory, Memory, Stream, find_gpu
from edgelm.runtime.engines.graph_check import check_capacity, vocab_size
from edgelm.runtime.engines.growth import first_rows, rows_for
from edgelm.runtime.engines.recurrent_state import RecurrentState
from edgelm.runtime.engines.session import CacheRows, Logits, Tokens
from edgelm.runtime.engines.step_inputs import step_inputs, update_step
from edgelm.runtime.engines.tensorrt.execution_slot import (
    ITEM_BYTES,
    ROLES,
    ExecutionSlot,
    GpuCache,
    PartContext,
)
from edgelm.runtime.engines.tensorrt.gpu_state import GpuState
from edgelm.runtime.engines.tensorrt.loaded_engine import LoadedEngine, check_gpu, load_library

log = logging.getLogger(__name__)


class TrtEngine:
    """A bundle's compiled engine on an NVIDIA GPU.

    Args:
        folder: the bundle.
        graph: its graph, as the manifest has it.
        compiled: which of its engines; the file is native code, and the caller trusts it.
        capacity: tokens that the cache may grow to hold.
        prefill_chunk: tokens that one run takes; fewer where the engine was compiled for fewer.

    Raises:
        MissingPackage: no TensorRT, no cuda-bindings, no driver or no GPU.
        BadBundle: an engine for another version or GPU, or a damaged one.
        BadInput: a capacity other than the graph's own.
        DoesNotFit: the GPU's memory does not hold engine, workspace and cache.
    """

    def __init__(
        self,
        folder: Path,
        graph: GraphContract,
        compiled: CompiledEngine,
        *,
        capacity: int,
        prefill_chunk: int,
    ) -> None:
        _check(graph, capacity)
        _check_parts(graph, compiled)
        module = load_library(compiled)
        check_gpu(compiled, find_gpu())
        self.capacity = capacity
        self.vocab_size = vocab_size(graph)
        self._stream = Stream()
        self._engines = [
            LoadedEngine(folder, compiled, part, module, self._stream) for part in compiled.parts
        ]
        for engine, part in zip(self._engines, graph.parts, strict=True):
            engine.check_tensors(graph, part)
        self._workspace = _shared_workspace(self._engines, compiled)
        longest = self._engines[0].max_profile_size(graph.inputs["tokens"].name)
        self.chunk = min(prefill_chunk, longest)
        self._contract = graph
        self._open_capacity = graph.cache.capacity is None
        # Rows that attention reads: those of the cache, unless the graph fixes these.
        self._rows = first_rows(graph, capacity)
        self._cache = self._new_cache(graph, self._rows if self._open_capacity else capacity)
        self._positions = _positions(capacity, self._stream)
        states = graph.cache.states
        self._state = GpuState(states, self._stream) if states else None
        self.recurrent: RecurrentState | None = self._state
        self.batch = self.texts = None
        self._prefill_slot, self._decode_slot = (
            ExecutionSlot(graph, parts, rows, self.vocab_size)
            for parts, rows in zip(_contexts(graph, self._engines), (self.chunk, 1), strict=True)
        )
        self._use_cache()
        for slot in (self._prefill_slot, self._decode_slot):
            slot.bind_all(self._state.addresses if self._state else {})
        self._decode_inputs = step_inputs(np.zeros(1, dtype=np.int64), 0, 1)
        self._decode_slot.set_shape(self._decode_inputs)
        self._row_memory = HostMemory(4 * self.vocab_size)
        self._row: Logits = self._row_memory.array(np.float32, count=self.vocab_size)[None]
        self._graph: Graph | None = None
        self._may_capture = not self._engines[0].captures_graphs
        self._stream.synchronize()

    @property
    def cache_bytes(self) -> int:
        """Memory that the key-value cache takes."""
        return self._cache.memory.size + (self._state.nbytes if self._state else 0)

    def run(
        self, tokens: Tokens, past: int, *, logits: int, cancelled: Callable[[], bool]
    ) -> Logits:
        """Append tokens [T] behind `past` others; return logits [logits, vocab_size]."""
        self._reserve(past, past + len(tokens))
        if len(tokens) == 1:
            row = self._decode(int(tokens[0]), past)
            return row if logits else row[:0]
        slot = self._prefill_slot
        inputs = step_inputs(tokens, past, logits)
        slot.set_shape(inputs)
        slot.fill(inputs)
        self._enqueue(slot)
        self._append(slot, past, len(tokens))
        rows = np.empty((logits, self.vocab_size), dtype=np.float32)
        if logits:
            self._stream.to_host(rows.ctypes.data, slot.logits.address, rows.nbytes)
        self._stream.synchronize()
        return rows

    def sibling(self) -> "TrtEngine":
        """Not possible yet: an engine's contexts are bound to one cache.

        Raises:
            BadInput: always.
        """
        raise BadInput("a TensorRT bundle runs one sequence; load it with sequences=1")

    def read_rows(self, count: int) -> CacheRows:
        """The first `count` rows of the cache, copied to the host."""
        cache = self._cache
        shapes = [(1, heads, count, cache.row_bytes(dim)) for heads, dim in cache.shapes]
        rows = [np.empty(shape, dtype=np.uint8) for shape in shapes]
        for address, array in zip(cache.addresses, rows, strict=True):
            for head in range(array.shape[1]):
                start = address + head * cache.rows * array.shape[3]
                self._stream.to_host(array[0, head].ctypes.data, start, array[0, head].nbytes)
        self._stream.synchronize()
        return list(rows)

    def write_rows(self, rows: CacheRows) -> None:
        """Write rows over the first ones of the cache."""
        self._reserve(0, max((array.shape[2] for array in rows), default=0))
        cache = self._cache
        whole = [np.ascontiguousarray(array) for array in rows]
        for address, array in zip(cache.addresses, whole, strict=True):
            for head in range(array.shape[1]):
                start = address + head * cache.rows * array.shape[3]
                self._stream.to_gpu(start, array[0, head].ctypes.data, array[0, head].nbytes)
        self._stream.synchronize()

    def close(self) -> None:
        """Release contexts before their engine, and memory when nothing uses it."""
        self._stream.synchronize()
        self._forget_graph()
        for slot in (self._prefill_slot, self._decode_slot):
            slot.close()
        for engine in self._engines:
            engine.close()
        self._workspace.free()
        self._cache.memory.free()
        self._positions.free()
        if self._state:
            self._state.free()
        self._stream.close()

    def _reserve(self, past: int, tokens: int) -> None:
        """Make room for `tokens`, of which the first `past` are there."""
        if tokens <= self._rows:
            return
        rows = rows_for(tokens, self.capacity)
        if self._open_capacity:
            grown = self._new_cache(self._contract, rows)
            if past:
                grown.copy_rows(self._stream, self._cache, past, pitch=self._cache.rows)
            self._stream.synchronize()
            self._cache.memory.free()
            self._cache = grown
        self._rows = rows
        self._use_cache()
        self._forget_graph()
        self._may_capture = not self._engines[0].captures_graphs

    def _new_cache(self, graph: GraphContract, rows: int) -> GpuCache:
        cache = GpuCache(graph, rows, "the key-value cache")
        self._stream.zero(cache.memory.address, cache.memory.size)  # NaN in a masked row spreads
        return cache

    def _use_cache(self) -> None:
        for slot in (self._prefill_slot, self._decode_slot):
            slot.use_cache(self._cache, self._positions.address, self._rows)

    def _forget_graph(self) -> None:
        """Release the recorded step, which holds the addresses and sizes of its time."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _decode(self, token: int, past: int) -> Logits:
        update_step(self._decode_inputs, token, past)
        self._decode_slot.fill(self._decode_inputs)
        if self._graph is not None:
            self._stream.launch(self._graph)
        else:
            self._enqueue_decode()
        self._append(self._decode_slot, past, 1)
        self._stream.synchronize()
        if self._may_capture:
            self._capture()
        return self._row

    def _enqueue_decode(self) -> None:
        """Queue a decoding step, from the inputs in pinned memory to the logits there."""
        self._enqueue(self._decode_slot)
        size = self._row_memory.size
        self._stream.to_host(self._row_memory.address, self._decode_slot.logits.address, size)

    def _enqueue(self, slot: ExecutionSlot) -> None:
        slot.enqueue(self._stream)
        if self._state:
            self._state.advance()

    def _capture(self) -> None:
        """Record a decoding step, once, after it ran: TensorRT sets itself up in the first run."""
        self._may_capture = False
        if not self._decode_slot.can_be_recorded(self._stream):
            return
        try:
            self._graph = self._stream.capture(self._enqueue_decode)
        except EdgeLMError as error:
            log.info("decoding without a CUDA graph: %s", error)

    def _append(self, slot: ExecutionSlot, past: int, count: int) -> None:
        """Copy new rows behind those of the cache, where the graph did not write them there."""
        if slot.new is not None:
            self._cache.copy_rows(self._stream, slot.new, count, pitch=count, to=past)


def _positions(capacity: int, stream: Stream) -> Memory:
    """The positions of all rows that a cache may have, int64."""
    staged, memory = HostMemory(8 * capacity), Memory(8 * capacity, "positions of the cache")
    staged.array(np.int64, count=capacity)[:] = np.arange(capacity)
    stream.to_gpu(memory.address, staged.address, staged.size)
    stream.synchronize()
    return memory


def _check(graph: GraphContract, capacity: int) -> None:
    for role, tensor in graph.inputs.items():
        if role not in ROLES or tensor.dtype != "int64":
            raise BadBundle(
                f"the graph has an input {role!r} of type {tensor.dtype}, expected int64 inputs "
                f"among {', '.join(sorted(ROLES))}; upgrade edgelm"
            )
    if graph.cache.dtype not in ITEM_BYTES:
        raise BadBundle(
            f"the cache is of type {graph.cache.dtype}, TensorRT has {', '.join(ITEM_BYTES)}; "
            "export the bundle again"
        )
    check_capacity(graph.cache, capacity)


def _check_parts(graph: GraphContract, compiled: CompiledEngine) -> None:
    if len(compiled.parts) != len(graph.parts):
        raise BadBundle(
            f"{compiled.file} is one of {len(compiled.parts)} engines, but the graph has "
            f"{len(graph.parts)} parts: it was compiled from another graph; compile it again: "
            "edge-export --finalize BUNDLE"
        )


def _shared_workspace(engines: Sequence[LoadedEngine], compiled: CompiledEngine) -> Memory:
    """Memory for whichever engine runs."""
    size = max(1, *(engine.workspace_bytes for engine in engines))
    memory = Memory(size, f"{compiled.file}'s workspace")
    for engine in engines:
        engine.use_workspace(memory)
    return memory


def _contexts(
    graph: GraphContract, engines: Sequence[LoadedEngine]
) -> tuple[list[PartContext], list[PartContext]]:
    """Those for prefill, and those for decoding."""
    pairs = list(zip(graph.parts, engines, strict=True))
    prefill = [PartContext(part, engine, engine.prefill) for part, engine in pairs]
    return prefill, [PartContext(part, engine, engine.decode) for part, engine in pairs]
