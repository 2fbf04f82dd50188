"""What the two dialects for TensorRT share: plain ONNX, a fixed cache, weights as Q/DQ.

The embedding keeps 16 bits, since no engine gathers from a packed table; a tied head is stored a
second time where it is quantized.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
import torch

from edgelm.bundle import CacheContract, GraphContract, TensorContract
from edgelm.export.graph import activations
from edgelm.export.graph.attention.attention_gate import scale_by_gate, split_gate
from edgelm.export.graph.attention.kv_cache import KvCacheIO
from edgelm.export.graph.attention.projected import split_projected
from edgelm.export.graph.attention.rope_tables import QueryFactors, RotaryTables
from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import DTYPES, Activations, Bias
from edgelm.export.graph.qdq_weights import QdqWeights
from edgelm.export.graph.recurrent.short_conv import ConvWeights, short_conv
from edgelm.export.graph.residual.per_layer_inputs import per_layer_tokens
from edgelm.export.graph.segments import Segments, save_graph
from edgelm.export.graph.source_inputs import prepare_inputs
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import DeltaWeights, MambaWeights, Router, Xielu
from edgelm.quantize.grids import Inputs
from edgelm.quantize.precision import PRECISIONS, Unquantized, WeightPrecision
from edgelm.spec.decoder import LayerSpec, Rope
from edgelm.spec.groups import EMBEDDING, HEAD, PER_LAYER_EMBEDDING
from edgelm.spec.layers.experts import MixtureOfExperts
from edgelm.spec.layers.mixers import GatedDelta, Mamba2

Value = ir.Value
_INT64 = ir.DataType.INT64


class QdqDialect:
    """Everything but norms, rotation, attention and activations, which engines spell differently.

    Args:
        folder: where `model.onnx` and its data file go; None to count bytes only.
        quantizer: of the source's matrices, with positive scales.
        precision: one record for every group of `weights.groups()`.
        activations: type of the residual stream and of the cache.
        context: tokens that the cache can hold.
        opset: an older one than `newest`, for an engine that needs it.
        dequantized: see QdqWeights.
        segments: into how many the graph is cut.
        batch: whether a run takes any number of sequences; only where `takes_batches`.
    """

    name: ClassVar[str]
    newest: ClassVar[int]
    update: ClassVar[Literal["in_place", "append"]]
    takes_batches: ClassVar[bool] = False

    def __init__(
        self,
        folder: Path | None,
        quantizer: Quantizer,
        precision: Mapping[str, WeightPrecision],
        *,
        activations: Activations,
        context: int,
        opset: int | None = None,
        dequantized: bool = False,
        segments: Segments = 1,
        batch: bool = False,
    ) -> None:
        self.opset = opset or self.newest
        self.graph = Graph(folder, opsets={"": self.opset})
        self.weights = quantizer.weights
        self.spec = self.weights.checkpoint.spec
        self.precision = precision
        self.activations = activations
        self.context = context
        self.segments = segments
        self.batch = self._batch() if batch else 1
        # In a Reshape: 0 keeps the number of sequences.
        self.kept_batch = 1 if self.batch == 1 else 0
        self.matrices = QdqWeights(self.graph, quantizer, activations, dequantized=dequantized)
        self.tokens = self.graph.input("tokens", _INT64, (self.batch, "T"))
        self.positions = self.graph.input("positions", _INT64, (self.batch, "T"))
        self.past_length = self.graph.input("past_length", _INT64, (self.batch,))
        self.logits_positions = self.graph.input("logits_positions", _INT64, ("P",))
        self.cache_positions = self.graph.input("cache_positions", _INT64, ("capacity",))
        self._table: Value | None = None
        self._query_index: Value | None = None
        self._key_index: Value | None = None
        self._cache_rows: Value | None = None
        self.rotary = RotaryTables(self.graph, self.spec, context, activations)
        self.query_factors = QueryFactors(self.graph, context, activations)
        self.cache = KvCacheIO(
            self.graph,
            self.spec,
            DTYPES[activations],
            past_rows=context if self.update == "in_place" else "capacity",
            present_rows=context if self.update == "in_place" else "T",
            state_dtype=DTYPES[activations],
            batch=self.batch,
        )

    def _batch(self) -> int | str:
        """Sequences per run: any number, where layers remember keys and values only."""
        assert self.takes_batches, f"the {self.name} dialect takes one sequence per run"
        return 1 if self.spec.states else "B"

    def norm(self, x: Value, name: str, weight: torch.Tensor, bias: Bias = None) -> Value:
        """See Dialect."""
        raise NotImplementedError

    def layer_norm(self, x: Value, name: str, weight: torch.Tensor, bias: torch.Tensor) -> Value:
        """LayerNorm over the last axis, an operator since opset 17."""
        parts = {"weight": weight, "bias": bias}
        values = [self.matrices.floats(f"{name}.{part}", one) for part, one in parts.items()]
        epsilon = self.spec.rms_norm_eps
        return self.graph.op("LayerNormalization", x, *values, name=name, epsilon=epsilon)  # type: ignore[no-any-return]

    def attend(
        self, query: Value, new: tuple[Value, Value] | None, index: int, layer: LayerSpec
    ) -> Value:
        """Append new keys and values to the cache and attend; all [1, heads, T, head_dim], rotated.

        Without new ones, over those of the layer whose keys and values this one shares.
        """
        raise NotImplementedError

    def rotate(self, x: Value, rope: Rope, layer: LayerSpec) -> Value:
        """Rotary embedding of [1, heads, T, head_dim]."""
        raise NotImplementedError

    def gelu(self, x: Value, *, tanh: bool) -> Value:
        """GELU, exact or by the tanh approximation."""
        raise NotImplementedError

    def split_gate(self, qkv: Value, layer: LayerSpec) -> tuple[Value, Value]:
        """See Dialect."""
        return split_gate(self.graph, self.spec, layer, qkv)

    def scale_by_gate(self, x: Value, gate: Value) -> Value:
        """See Dialect."""
        return scale_by_gate(self.graph, x, gate)

    def start_part(self) -> None:
        """See Dialect."""
        self.graph.start_part()

    def embed(self) -> Value:
        group = HEAD if self.spec.tie_word_embeddings else EMBEDDING
        precision = self._unquantized(self.precision[group])
        table = self.matrices.plain("embedding.weight", self.weights.matrix(group), precision)
        if self.spec.tie_word_embeddings and isinstance(self.precision[HEAD], Unquantized):
            self._table = table
        return self.graph.op("Gather", table, self.tokens, name="embed", axis=0)  # type: ignore[no-any-return]

    def embed_per_layer(self) -> Value:
        tokens = per_layer_tokens(self.graph, self.spec, self.tokens)
        return self.matrices.gather(
            tokens, PER_LAYER_EMBEDDING, self.precision[PER_LAYER_EMBEDDING]
        )

    def _unquantized(self, precision: WeightPrecision) -> Unquantized:
        """A group's precision, or that of the activations where it is quantized."""
        if not isinstance(precision, Unquantized):
            precision = PRECISIONS[self.activations]
        assert isinstance(precision, Unquantized)
        return precision

    def linear(
        self, x: Value, group: str, matrix: Callable[[], torch.Tensor], bias: torch.Tensor | None
    ) -> Value:
        if group == HEAD and self._table is not None:
            transposed = self.graph.op("Transpose", self._table, perm=[1, 0])
            y: Value = self.graph.op("MatMul", x, transposed, name=group)
        else:
            y = self.matrices.multiply(x, group, matrix, self.precision[group])
        return y if bias is None else self.add(y, self.matrices.floats(f"{group}.bias", bias))

    def prepare_inputs(self, x: Value, group: str, inputs: Inputs) -> Value:
        """See Dialect."""
        return prepare_inputs(self.graph, x, group, inputs, self.activations)

    def add_norm(
        self, stream: Value, delta: Value, name: str, weight: torch.Tensor, bias: Bias = None
    ) -> tuple[Value, Value]:
        total = self.add(stream, delta)
        return self.norm(total, name, weight, bias), total

    def add(self, x: Value, y: Value) -> Value:
        return self.graph.op("Add", x, y)  # type: ignore[no-any-return]

    def scale(self, x: Value, factor: float) -> Value:
        return self.graph.op("Mul", x, self.number(factor))  # type: ignore[no-any-return]

    def number(self, value: float, activations: Activations | None = None) -> Value:
        """A scalar in the type of the activations, or another."""
        kind = activations or self.activations
        # ml_dtypes, behind onnx_ir, gives numpy its bfloat16.
        array = np.array(value, dtype=DTYPES[kind].numpy())
        return self.graph.constant(f"{kind}.{value!r}", array)

    def attention(
        self,
        qkv: Value,
        index: int,
        layer: LayerSpec,
        qk_norm: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> Value:
        if layer.shares_kv_of is None:
            query, *new = self._rotated(qkv, index, layer, qk_norm)
            attended = self.attend(self._grown(query, layer), (new[0], new[1]), index, layer)
        else:
            query = self._rotated_query(qkv, index, layer, qk_norm)
            attended = self.attend(self._grown(query, layer), None, index, layer)
        rows = self.graph.op("Transpose", attended, perm=[0, 2, 1, 3])
        width = self.spec.heads(layer).q_size
        shape = np.array([self.kept_batch, -1, width], dtype=np.int64)
        flat = self.graph.constant(f"shape.flat.{width}", shape)
        return self.graph.op("Reshape", rows, flat)  # type: ignore[no-any-return]

    def _rotated_query(
        self,
        query: Value,
        index: int,
        layer: LayerSpec,
        qk_norm: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> Value:
        """Queries of a layer that has no keys of its own (Gemma 4)."""
        query = self._heads(query, layer)
        if qk_norm:
            query = self.norm(query, f"layers.{index}.self_attn.q_norm", qk_norm[0])
        return self.rotate(query, layer.rope, layer) if layer.rope else query

    def _rotated(
        self,
        qkv: Value,
        index: int,
        layer: LayerSpec,
        qk_norm: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[Value, Value, Value]:
        """Queries, keys and values as attention takes them, [1, heads, T, head_dim]."""
        spec = self.spec
        query, key, value = split_projected(self.graph, spec, layer, qkv)
        if qk_norm and spec.qk_norm == "full":
            query, key = self._norm_both(query, key, index, qk_norm)
        query, key, value = (self._heads(one, layer) for one in (query, key, value))
        if spec.value_norm:
            weight = self.weights.value_norm(index)
            value = self.norm(value, f"layers.{index}.self_attn.v_norm", weight)
        if qk_norm and spec.qk_norm == "head" and not spec.qk_norm_after_rope:
            query, key = self._norm_both(query, key, index, qk_norm)
        if layer.rope:
            query, key = (self.rotate(one, layer.rope, layer) for one in (query, key))
        if qk_norm and spec.qk_norm_after_rope:
            query, key = self._norm_both(query, key, index, qk_norm)
        return query, key, value

    def _norm_both(
        self, query: Value, key: Value, index: int, weights: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[Value, Value]:
        prefix = f"layers.{index}.self_attn"
        query = self.norm(query, f"{prefix}.q_norm", weights[0])
        return query, self.norm(key, f"{prefix}.k_norm", weights[1])

    def _grown(self, query: Value, layer: LayerSpec) -> Value:
        """Queries [1, heads, T, head_dim] times the factors of their positions, if any."""
        table = self.query_factors[layer.query_growth]
        if table is None:
            return query
        sizes = np.array([self.kept_batch, 1, -1, 1], dtype=np.int64)
        shape = self.graph.constant("shape.factors", sizes)
        rows = self.graph.op("Gather", table, self.positions, axis=0)
        return self.graph.op("Mul", query, self.graph.op("Reshape", rows, shape))  # type: ignore[no-any-return]

    def _heads(self, x: Value, layer: LayerSpec) -> Value:
        """[1, T, heads * head_dim] -> [1, heads, T, head_dim]."""
        dim = self.spec.heads(layer).dim
        shape = np.array([0, 0, -1, dim], dtype=np.int64)
        split = self.graph.op("Reshape", x, self.graph.constant(f"shape.heads.{dim}", shape))
        return self.graph.op("Transpose", split, perm=[0, 2, 1, 3])  # type: ignore[no-any-return]

    def gated_delta(
        self, inputs: Value, index: int, mixer: GatedDelta, weights: DeltaWeights
    ) -> Value:
        raise NotImplementedError

    def mamba2(self, inputs: Value, index: int, mixer: Mamba2, weights: MambaWeights) -> Value:
        raise NotImplementedError

    def short_conv(
        self, gates: Value, index: int, kernel: torch.Tensor, bias: torch.Tensor | None
    ) -> Value:
        weights = ConvWeights(index, kernel, bias)
        return short_conv(self.graph, self.cache, gates, weights, self.activations)

    def experts(self, x: Value, index: int, mixture: MixtureOfExperts, router: Router) -> Value:
        # edgelm.devices.kernels lets no mixture through.
        raise NotImplementedError

    def gate_shared(self, shared: Value, x: Value, index: int, weight: torch.Tensor) -> Value:
        raise NotImplementedError

    def gated(self, gate_up: Value, size: int, sparsity: float = 0.0) -> Value:
        halves = self.graph.constant(f"gate_up_sizes_{size}", np.array([size] * 2, dtype=np.int64))
        gate, up = self.graph.op("Split", gate_up, halves, outputs=2, axis=-1)
        if sparsity:
            gate = activations.sparse_gates(self, gate, sparsity)
        return self.graph.op("Mul", self.activate(gate, None), up)  # type: ignore[no-any-return]

    def activate(self, x: Value, xielu: Xielu | None) -> Value:
        kind = self.spec.hidden_act
        if xielu is not None:
            return activations.xielu(self, x, xielu)
        if kind == "relu2":
            return activations.relu2(self, x)
        if kind == "silu":
            return self.graph.op("Mul", x, self.graph.op("Sigmoid", x))  # type: ignore[no-any-return]
        return self.gelu(x, tanh=kind == "gelu_tanh")

    def select_positions(self, x: Value) -> Value:
        return self.graph.op("Gather", x, self.logits_positions, axis=1)  # type: ignore[no-any-return]

    def finish(self, logits: Value) -> None:
        if self.activations != "fp32":
            logits = self.cast(logits, "fp32")
        if cap := self.spec.logits_softcap:
            small = self.graph.op("Mul", logits, self.number(1 / cap, "fp32"))
            logits = self.graph.op("Mul", self.graph.op("Tanh", small), self.number(cap, "fp32"))
        self.graph.output(
            logits, "logits", ir.DataType.FLOAT, (self.batch, "P", self.spec.vocab_size)
        )

    def cast(self, x: Value, to: Activations) -> Value:
        """The same values in another type."""
        return self.graph.op("Cast", x, to=DTYPES[to].value)  # type: ignore[no-any-return]

    def key_index(self) -> Value:
        """The positions of the cache's rows as [1, 1, 1, capacity]; one node for all layers."""
        if self._key_index is None:
            shape = self.graph.constant("shape.keys", np.array([1, 1, 1, -1], dtype=np.int64))
            self._key_index = self.graph.op("Reshape", self.cache_positions, shape)
        return self._key_index

    def cache_rows(self) -> Value:
        """How many rows of the cache attention reads, int64 [1]; one node for all layers."""
        if self._cache_rows is None:
            self._cache_rows = self.graph.op("Shape", self.cache_positions)
        return self._cache_rows

    def query_index(self) -> Value:
        """Positions of the queries as [batch, 1, T, 1]; one node for all layers."""
        if self._query_index is None:
            shape = np.array([self.kept_batch, 1, -1, 1], dtype=np.int64)
            self._query_index = self.graph.op(
                "Reshape", self.positions, self.graph.constant("shape.queries", shape)
            )
        return self._query_index

    def within(self, visible: Value, keys: Value, queries: Value, window: int) -> Value:
        """`visible`, but for keys that lie `window` or more positions back."""
        reach = self.graph.constant(f"window.{window}", np.array(window, dtype=np.int64))
        oldest = self.graph.op("Sub", queries, reach)
        return self.graph.op("And", visible, self.graph.op("Greater", keys, oldest))  # type: ignore[no-any-return]

    def save(self) -> GraphContract:
        """Write the graph and describe it."""
        saved = save_graph(self.graph, self.segments)
        spec = self.spec
        return GraphContract(
            file=saved.file,
            data=self.graph.data_name,
            dialect=self.name,
            opsets={"ai.onnx": self.opset},
            inputs={
                "tokens": TensorContract("tokens", "int64", (self.batch, "T")),
                "positions": TensorContract("positions", "int64", (self.batch, "T")),
                "past_length": TensorContract("past_length", "int64", (self.batch,)),
                "logits_positions": TensorContract("logits_positions", "int64", ("P",)),
                "cache_positions": TensorContract("cache_positions", "int64", ("capacity",)),
            },
            outputs={
                "logits": TensorContract("logits", "float32", (self.batch, "P", spec.vocab_size))
            },
            cache=CacheContract(
                dtype=self.activations,
                num_key_value_heads=spec.num_key_value_heads,
                head_dim=spec.head_dim,
                layers=tuple(self.cache.layers),
                states=tuple(self.cache.states),
                update=self.update,
                capacity=self.context if self.update == "in_place" else None,
            ),
            segments=saved.segments,
            links=saved.links,
        )
