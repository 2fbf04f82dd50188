"""The session on TensorRT and TensorRT-RTX: one engine, one stream, the cache on the GPU.

Prefill and decode have a context each, and everything that a context reads or writes stays at one
address, so that decoding is one CUDA graph launched again and again. Where the graph of the bundle
writes the cache itself (`update` in_place), present is bound to past; where it gives the new rows
(append), they are copied behind the old ones, outside the CUDA graph, since their place changes.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.bundle import CompiledEngine, GraphContract, Manifest
from edgelm.errors import BadBundle, BadInput, EdgeLMError
from edgelm.runtime.engines.chunked import ChunkedSession
from edgelm.runtime.engines.cuda import Graph, HostMemory, Memory, Stream, find_gpu
from edgelm.runtime.engines.session import Logits, Tokens
from edgelm.runtime.engines.tensorrt.engine import Engine, check_gpu, load_library

log = logging.getLogger(__name__)

_ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_ALIGNMENT = 256  # what TensorRT asks of an address


class TrtSession(ChunkedSession):
    """A bundle's engine on an NVIDIA GPU.

    Args:
        folder: the bundle.
        manifest: its manifest.
        engine: which of its engines; the file is native code, and the caller trusts it.
        capacity: tokens that the cache holds; TensorRT's graphs fix it.

    Raises:
        MissingPackage: no TensorRT, no cuda-bindings, no driver or no GPU.
        BadBundle: an engine for another version or GPU, or a damaged one.
        DoesNotFit: the GPU's memory does not hold engine, workspace and cache.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, engine: CompiledEngine, *, capacity: int
    ) -> None:
        graph = manifest.graph
        _check(graph, capacity)
        module = load_library(engine)
        check_gpu(engine, find_gpu())
        self.capacity = capacity
        super().__init__()
        self.vocab_size = manifest.spec.vocab_size
        self._stream = Stream()
        self._engine = Engine(folder, engine, module, self._stream)
        self._engine.check_tensors(graph)
        tokens = graph.inputs["tokens"].name
        self.chunk = min(manifest.limits.prefill_chunk, self._engine.most(tokens))
        self._cache = _Cache(graph, capacity, "the key-value cache")
        memory = self._cache.memory
        self._stream.zero(memory.address, memory.size)  # NaN in a masked row would spread
        self._prefill_lane, self._decode_lane = (
            _Lane(graph, self._engine, context, self._cache, rows, self.vocab_size)
            for context, rows in ((self._engine.prefill, self.chunk), (self._engine.decode, 1))
        )
        self._decode_lane.shape(1, 1)
        self._row_memory = HostMemory(4 * self.vocab_size)
        self._row: Logits = self._row_memory.array(np.float32, count=self.vocab_size)[None]
        self._graph: Graph | None = None
        self._may_capture = not self._engine.replays
        self._stream.synchronize()

    @property
    def cache_bytes(self) -> int:
        """Memory that the key-value cache takes."""
        return self._cache.memory.size

    def _release(self) -> None:
        if "_engine" not in self.__dict__:
            return
        self._stream.synchronize()
        if self._graph is not None:
            self._graph.close()
        for lane in (self._prefill_lane, self._decode_lane):
            lane.close()
        self._engine.close()
        self._cache.memory.free()
        self._stream.close()
        for name in ("_engine", "_prefill_lane", "_decode_lane", "_graph"):
            self.__dict__.pop(name)

    def _step(self, token: int) -> Logits:
        self._decode_lane.fill(token, self.length, 0)
        if self._graph is not None:
            self._stream.launch(self._graph)
        else:
            self._decode()
        self._append(self._decode_lane, 1)
        self._stream.synchronize()
        if self._may_capture:
            self._capture()
        return self._row

    def _run(self, chunk: Tokens, wanted: Tokens, *, owed: bool) -> Logits:
        lane, count = self._prefill_lane, len(chunk)
        lane.shape(count, len(wanted))
        lane.fill(chunk, self.length, wanted)
        lane.enqueue(self._stream)
        self._append(lane, count)
        rows = np.empty((len(wanted), self.vocab_size), dtype=np.float32)
        if owed:
            self._stream.to_host(rows.ctypes.data, lane.logits.address, rows.nbytes)
        self._stream.synchronize()
        return rows

    def _decode(self) -> None:
        """Queue a decoding step, from the inputs in pinned memory to the logits there."""
        lane = self._decode_lane
        lane.enqueue(self._stream)
        size = self._row_memory.size
        self._stream.to_host(self._row_memory.address, lane.logits.address, size)

    def _capture(self) -> None:
        """Record a decoding step, once, after it ran: TensorRT sets itself up in the first run."""
        self._may_capture = False
        if not _capturable(self._engine.decode, self._stream):
            return
        try:
            self._graph = self._stream.capture(self._decode)
        except EdgeLMError as error:
            log.info("decoding without a CUDA graph: %s", error)

    def _append(self, lane: "_Lane", count: int) -> None:
        if lane.new is None:
            return
        width = count * self._cache.row_bytes
        pitches = (self.capacity * self._cache.row_bytes, width)
        behind = self.length * self._cache.row_bytes
        for past, new in zip(self._cache.addresses, lane.new.addresses, strict=True):
            self._stream.copy_rows(
                past + behind, new, pitches=pitches, width=width, rows=self._cache.heads
            )


class _Cache:
    """Keys and values of all layers in one piece of memory, [1, heads, rows, head_dim] each.

    `addresses` has key and value by turns.
    """

    def __init__(self, graph: GraphContract, rows: int, what: str) -> None:
        cache = graph.cache
        self.heads = cache.num_key_value_heads
        self.row_bytes = cache.head_dim * _ITEM_BYTES[cache.dtype]
        stride = _aligned(self.heads * rows * self.row_bytes)
        count = 2 * len(cache.layers)
        self.memory = Memory(count * stride, what)
        self.addresses = [self.memory.address + stride * number for number in range(count)]


class _Lane:
    """A context with the memory that it reads and writes, for up to `rows` tokens.

    `new` is where it puts the new rows of the cache, if the graph does not put them there itself.
    """

    def __init__(
        self,
        graph: GraphContract,
        engine: Engine,
        context: Any,
        cache: _Cache,
        rows: int,
        vocab: int,
    ) -> None:
        self._engine, self._context = engine, context
        self._vocab = vocab
        self._tensors = {role: tensor.name for role, tensor in graph.inputs.items()}
        self._logits_name = graph.outputs["logits"].name
        sizes = {"tokens": rows, "positions": rows, "past_length": 1, "logits_positions": rows}
        strides = {role: _aligned(8 * count) for role, count in sizes.items()}
        self._given = HostMemory(sum(strides.values()))
        self._inputs = Memory(self._given.size, "a context's inputs")
        self._arrays = {}
        offset = 0
        for role, count in sizes.items():
            self._arrays[role] = self._given.array(np.int64, offset=offset, count=count)
            if role in self._tensors:
                self._bind(self._tensors[role], self._inputs.address + offset)
            offset += strides[role]
        self.logits = Memory(4 * vocab, "logits")
        self._bind(self._logits_name, self.logits.address)
        self.new = _Cache(graph, rows, "new rows") if graph.cache.update == "append" else None
        written = self.new or cache
        for (past, present), old, new in zip(
            _cache_names(graph), cache.addresses, written.addresses, strict=True
        ):
            self._bind(past, old)
            self._bind(present, new)

    def shape(self, tokens: int, logits: int) -> None:
        """Say how many tokens come, and how many rows of logits are wanted."""
        shapes = {"tokens": (1, tokens), "positions": (1, tokens), "logits_positions": (logits,)}
        for role, shape in shapes.items():
            if role in self._tensors:
                accepted = self._context.set_input_shape(self._tensors[role], shape)
                self._engine.done(accepted, f"{role} of shape {shape}")
        if 4 * self._vocab * logits > self.logits.size:
            self.logits.free()
            self.logits = Memory(4 * self._vocab * logits, f"{logits} rows of logits")
            self._bind(self._logits_name, self.logits.address)

    def fill(self, tokens: Tokens | int, past: int, wanted: Tokens | int) -> None:
        """Put the inputs where `enqueue` takes them from."""
        count, rows = np.size(tokens), np.size(wanted)
        self._arrays["tokens"][:count] = tokens
        self._arrays["positions"][:count] = range(past, past + count)
        self._arrays["past_length"][0] = past
        self._arrays["logits_positions"][:rows] = wanted

    def enqueue(self, stream: Stream) -> None:
        """Queue the copy of the inputs, and the engine."""
        stream.to_gpu(self._inputs.address, self._given.address, self._given.size)
        self._engine.done(self._context.execute_async_v3(stream.handle), "a run")

    def close(self) -> None:
        """Release the memory."""
        for memory in (self._inputs, self.logits, self.new and self.new.memory):
            if memory:
                memory.free()

    def _bind(self, name: str, address: int) -> None:
        self._engine.done(self._context.set_tensor_address(name, address), f"binding {name!r}")


def _check(graph: GraphContract, capacity: int) -> None:
    known = {"tokens", "positions", "past_length", "logits_positions"}
    for role, tensor in graph.inputs.items():
        if role not in known or tensor.dtype != "int64":
            raise BadBundle(
                f"the graph has an input {role!r} of type {tensor.dtype}; an engine's are int64: "
                f"{', '.join(sorted(known))}; upgrade edgelm (pip install -U edgelm)"
            )
    if graph.cache.dtype not in _ITEM_BYTES:
        raise BadBundle(
            f"the cache is of type {graph.cache.dtype}, TensorRT has {', '.join(_ITEM_BYTES)}; "
            "export the bundle again"
        )
    if graph.cache.capacity != capacity:
        raise BadInput(
            f"the context of this bundle is fixed at {graph.cache.capacity}, {capacity} was asked; "
            "export it again with --context"
        )


def _cache_names(graph: GraphContract) -> Iterator[tuple[str, str]]:
    """Past and present of the keys, then of the values, of each layer."""
    for layer in graph.cache.layers:
        yield layer.past_key, layer.present_key
        yield layer.past_value, layer.present_value


def _capturable(context: Any, stream: Stream) -> bool:
    # Where there is nothing to ask, trying tells.
    ask = getattr(context, "is_stream_capturable", None)
    return ask is None or bool(ask(stream.handle))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
