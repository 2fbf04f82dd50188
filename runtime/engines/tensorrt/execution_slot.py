"""Execution contexts with the GPU memory that they read and write, at addresses that stay.

There is a context for each part of the graph: one, or one for each segment, which run in a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from edgelm.bundle import GraphContract, GraphSegment
from edgelm.runtime.engines.cuda import HostMemory, Memory, Stream
from edgelm.runtime.engines.step_inputs import StepInputs
from edgelm.runtime.engines.tensorrt.link_memory import LinkMemory, resolve
from edgelm.runtime.engines.tensorrt.loaded_engine import LoadedEngine

ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
# All int64. What changes with each step comes first.
_STEP_ROLES = ("tokens", "positions", "past_length", "logits_positions")
ROLES = (*_STEP_ROLES, "cache_positions")
_ALIGNMENT = 256  # of addresses, required by TensorRT


class GpuCache:
    """Keys and values of all layers in one piece of memory, [1, heads, rows, head_dim] each.

    `addresses` has them layer by layer, alternating key and value, and `shapes` their heads and
    channels.
    """

    def __init__(self, graph: GraphContract, rows: int, what: str) -> None:
        cache = graph.cache
        self.rows = rows
        self._item_bytes = ITEM_BYTES[cache.dtype]
        self.shapes = [cache.heads(layer) for layer in cache.layers for _ in ("key", "value")]
        sizes = [_aligned(heads * rows * self.row_bytes(dim)) for heads, dim in self.shapes]
        self.memory = Memory(sum(sizes), what)
        starts = accumulate(sizes[:-1], initial=self.memory.address)
        self.addresses = list(starts)[: len(sizes)]

    def row_bytes(self, dim: int) -> int:
        """Bytes of one head's row."""
        return dim * self._item_bytes

    def copy_rows(
        self, stream: Stream, source: "GpuCache", count: int, *, pitch: int, to: int = 0
    ) -> None:
        """Queue a copy of the first `count` rows of another cache, to behind the first `to`.

        `pitch`: rows from one head to the next in the source, which may be filled in part.
        """
        for old, new, (heads, dim) in zip(
            source.addresses, self.addresses, self.shapes, strict=True
        ):
            row = self.row_bytes(dim)
            pitches = (self.rows * row, pitch * row)
            stream.copy_rows(new + to * row, old, pitches=pitches, width=count * row, rows=heads)


class PartContext(NamedTuple):
    """A part of the graph, its engine, and a context of that."""

    part: GraphSegment
    engine: LoadedEngine
    context: Any

    def bind(self, name: str, address: int) -> None:
        """Bind a tensor, if the part has it."""
        if name in self.part.inputs or name in self.part.outputs:
            accepted = self.context.set_tensor_address(name, address)
            self.engine.check(accepted, f"binding {name!r}")

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Announce an input's shape, if the part has it."""
        if name in self.part.inputs:
            accepted = self.context.set_input_shape(name, shape)
            self.engine.check(accepted, f"{name} of shape {shape}")


class ExecutionSlot:
    """The contexts of all parts and their memory, for up to `rows` tokens.

    `new` is where they put the new rows of the cache, if the graph does not put them there itself.
    It runs once it has been given a cache: see `use_cache`.
    """

    def __init__(
        self, graph: GraphContract, parts: Sequence[PartContext], rows: int, vocab_size: int
    ) -> None:
        self._graph, self._parts = graph, list(parts)
        self._vocab_size = vocab_size
        self._names = {role: graph.inputs[role].name for role in _STEP_ROLES}
        self._logits_name = graph.outputs["logits"].name
        stride = _aligned(8 * rows)
        self._staged = HostMemory(stride * len(self._names))
        self._inputs = Memory(self._staged.size, "a context's inputs")
        self._arrays = {}
        for number, (role, name) in enumerate(self._names.items()):
            self._arrays[role] = self._staged.array(np.int64, offset=number * stride, count=rows)
            self._bind(name, self._inputs.address + number * stride)
        self.logits = Memory(4 * vocab_size, "logits")
        self._bind(self._logits_name, self.logits.address)
        self._links = LinkMemory(graph, {"B": 1, "T": rows, "P": rows})
        for name, address in self._links.addresses.items():
            self._bind(name, address)
        self.new = GpuCache(graph, rows, "new rows") if graph.cache.update == "append" else None

    def use_cache(self, cache: GpuCache, positions: int, rows: int) -> None:
        """Bind a cache, of which attention reads `rows` rows; their positions are at an address."""
        graph = self._graph
        written = self.new or cache
        for (past, present), old, new, (heads, dim) in zip(
            _cache_names(graph), cache.addresses, written.addresses, cache.shapes, strict=True
        ):
            self._bind(past, old)
            self._bind(present, new)
            if graph.cache.capacity is None or graph.takes_batches:
                self._set_shape(past, (1, heads, cache.rows, dim))
        if "cache_positions" in graph.inputs:
            name = graph.inputs["cache_positions"].name
            self._bind(name, positions)
            self._set_shape(name, (rows,))

    def bind_all(self, addresses: Mapping[str, int]) -> None:
        """Bind tensors of fixed shapes to addresses that stay."""
        for name, address in addresses.items():
            self._bind(name, address)

    def set_shape(self, inputs: StepInputs) -> None:
        """Announce how many tokens come, and of how many logits are computed."""
        roles = ("tokens", "positions", "logits_positions")
        for role in (*roles, "past_length") if self._graph.takes_batches else roles:
            self._set_shape(self._names[role], inputs[role].shape)
        rows = inputs["logits_positions"].size
        sizes = {"B": 1, "T": inputs["tokens"].size, "P": rows}
        for link in self._graph.links:
            self._set_shape(link.name, resolve(link.shape, sizes))
        if self.new is not None:  # whose rows a later part may read
            for (_, present), (heads, dim) in zip(
                _cache_names(self._graph), self.new.shapes, strict=True
            ):
                self._set_shape(present, (1, heads, sizes["T"], dim))
        if 4 * self._vocab_size * rows > self.logits.size:
            self.logits.free()
            self.logits = Memory(4 * self._vocab_size * rows, f"{rows} rows of logits")
            self._bind(self._logits_name, self.logits.address)

    def fill(self, inputs: StepInputs) -> None:
        """Put the inputs where `enqueue` takes them from."""
        for role, array in self._arrays.items():
            values = inputs[role]
            array[: values.size] = values.ravel()

    def enqueue(self, stream: Stream) -> None:
        """Queue the copy of the inputs, and all parts in a row."""
        stream.to_gpu(self._inputs.address, self._staged.address, self._staged.size)
        for part in self._parts:
            part.engine.check(part.context.execute_async_v3(stream.handle), "a run")

    def can_be_recorded(self, stream: Stream) -> bool:
        """Whether `enqueue` can become a CUDA graph; older versions do not say: it is tried."""
        asks = [getattr(part.context, "is_stream_capturable", None) for part in self._parts]
        return all(ask is None or bool(ask(stream.handle)) for ask in asks)

    def close(self) -> None:
        """Release the contexts and the memory."""
        self._parts.clear()
        self._links.free()
        for memory in (self._inputs, self.logits, self.new and self.new.memory):
            if memory:
                memory.free()

    def _bind(self, name: str, address: int) -> None:
        for part in self._parts:
            part.bind(name, address)

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        for part in self._parts:
            part.set_shape(name, shape)


def _cache_names(graph: GraphContract) -> Iterator[tuple[str, str]]:
    """Past and present of the keys, then of the values, of each layer."""
    for layer in graph.cache.layers:
        yield layer.past_key, layer.present_key
        yield layer.past_value, layer.present_value


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
