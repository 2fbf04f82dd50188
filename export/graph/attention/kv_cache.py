"""The key-value cache at a graph's edge: what every dialect declares alike."""

from collections.abc import Mapping
from typing import Literal

import onnx_ir as ir

from edgelm.bundle import CacheLayer, StateTensor, TensorContract
from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import Activations
from edgelm.quantize.precision import KvType
from edgelm.spec.assistant import read_layers
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.layers.mixers import StateKind

Value = ir.Value
_KINDS = ("key", "value")
_STATE_DTYPES: dict[ir.DataType, Literal["float32", "float16", "bfloat16"]] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}
_DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.INT8: "int8"}


class KvCacheIO:
    """Past as inputs and present as outputs, [batch, kv_heads, rows, head_dim] a layer.

    Args:
        graph: the graph that declares them.
        spec: the decoder.
        dtype: type of the cache.
        past_rows: rows of past; a string leaves them open.
        present_rows: rows of present: the same, or only the new ones.
        state_dtype: type of the states of layers without attention.
        batch: sequences per run; a string leaves their number open.
        window_rows: rows of the layers that hold a window only, by their index.
    """

    def __init__(
        self,
        graph: Graph,
        spec: DecoderSpec,
        dtype: ir.DataType,
        *,
        past_rows: int | str,
        present_rows: int | str,
        state_dtype: ir.DataType,
        batch: int | str = 1,
        window_rows: Mapping[int, int] | None = None,
    ) -> None:
        self.graph = graph
        self.spec = spec
        self.dtype = dtype
        self.past_rows = past_rows
        self.present_rows = present_rows
        self.state_dtype = state_dtype
        self.batch = batch
        self.window_rows = window_rows or {}
        self.layers: list[CacheLayer] = []
        self.states: list[StateTensor] = []
        self.borrowed: list[TensorContract] = []
        self._states = {(one.layer, one.kind): one.shape for one in spec.states}

    def past(self, index: int) -> tuple[Value, Value]:
        """Declare a layer's keys and values as inputs."""
        key, value = (
            self.graph.input(f"past.{index}.{kind}", self.dtype, self._shape(index, self.past_rows))
            for kind in _KINDS
        )
        return key, value

    def present(self, index: int, key: Value, value: Value) -> None:
        """Declare what follows `past` as outputs."""
        shape = self._shape(index, self.present_rows)
        for kind, tensor in zip(_KINDS, (key, value), strict=True):
            self.graph.output(tensor, f"present.{index}.{kind}", self.dtype, shape)
        own = self.spec.layers[index]
        key_names, value_names = (
            tuple(f"{when}.{index}.{kind}" for when in ("past", "present")) for kind in _KINDS
        )
        self.layers.append(
            CacheLayer(
                past_key=key_names[0],
                past_value=value_names[0],
                present_key=key_names[1],
                present_value=value_names[1],
                num_key_value_heads=own.num_key_value_heads,
                head_dim=own.head_dim,
                rows=self.window_rows.get(index),
                window=own.window if index in self.window_rows else None,
            )
        )

    def borrow(self) -> dict[int, tuple[Value, Value]]:
        """Declare what an assistant reads of its model's cache as inputs, by the model's layers."""
        if self.spec.assistant is None:
            return {}
        readers = {layer.shares_kv_of: layer for layer in self.spec.layers}
        found = {}
        for index in read_layers(self.spec):
            heads = self.spec.heads(readers[index])
            shape = (self.batch, heads.keys, self.past_rows, heads.dim)
            names = [f"past.{index}.{kind}" for kind in _KINDS]
            key, value = (self.graph.input(name, self.dtype, shape) for name in names)
            found[index] = key, value
            dtype = _DTYPES[self.dtype]
            self.borrowed += [TensorContract(name, dtype, shape) for name in names]
        return found

    def past_state(self, index: int, kind: StateKind = "conv") -> Value:
        """Declare what a layer without attention remembers as an input, [1, *shape]."""
        name = f"past.{index}.{kind}"
        return self.graph.input(name, self._state_type(kind), (1, *self._states[index, kind]))

    def present_state(self, index: int, value: Value, kind: StateKind = "conv") -> None:
        """Declare what follows `past_state` as an output."""
        shape, dtype = self._states[index, kind], self._state_type(kind)
        past, present = (f"{when}.{index}.{kind}" for when in ("past", "present"))
        self.graph.output(value, present, dtype, (1, *shape))
        self.states.append(StateTensor(index, kind, _STATE_DTYPES[dtype], shape, past, present))

    def _state_type(self, kind: StateKind) -> ir.DataType:
        # A matrix state sums over all tokens: 16 bits would lose what later ones add.
        return ir.DataType.FLOAT if kind == "matrix" else self.state_dtype

    def _shape(self, index: int, rows: int | str) -> tuple[int | str, ...]:
        heads = self.spec.heads(self.spec.layers[index])
        return (self.batch, heads.keys, self.window_rows.get(index, rows), heads.dim)


def batch_axis(spec: DecoderSpec, kv: KvType, activations: Activations) -> int | str:
    """Sequences per run: any number, where each layer has keys and values of its own.

    In fp32, the CPU's, runs over an int8 cache of more tokens than a speculative step has are of
    one sequence, since the way over the dequantized cache takes one length; over fp8 all runs are.
    """
    shared = any(layer.shares_kv_of is not None for layer in spec.layers)
    if spec.states or shared or spec.draft_head or (kv == "fp8" and activations == "fp32"):
        return 1
    return "B"
