"""Attention of the `ort` dialect: GroupQueryAttention over a cache that is updated in place.

In fp32, the CPU's, a layer has two ways over an int8 cache, of which a run takes one: the int8
kernel for a token or the few of a speculative step, and attention over the dequantized cache for
more (docs/decisions/prefill-over-int8-cache.md). In 16 bits, CUDA's, its kernels see to both.

A windowed layer may hold a window only; the kernel then drops older rows itself, and its inputs
stay those of the whole sequence (docs/decisions/key-value-rings.md).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import torch

from edgelm.export.graph.attention.attention_gate import scale_by_gate, split_gate
from edgelm.export.graph.attention.kv_cache import KvCacheIO, batch_axis
from edgelm.export.graph.attention.projected import split_projected
from edgelm.export.graph.attention.rope_tables import QueryFactors, RotaryTables
from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import DTYPES, Activations, write_floats
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import KvType
from edgelm.spec.decoder import LayerSpec, Rope

Value = ir.Value
MICROSOFT = "com.microsoft"
_CACHE_TYPES: dict[str, ir.DataType] = {
    "int8": ir.DataType.INT8,
    "fp8": ir.DataType.FLOAT8E4M3FN,
}
# Tokens up to which a run takes the decode kernel: its time grows with each row, that of the other
# way begins at about eight rows of it.
MAX_VERIFIED = 16
# Heads from which each is computed by one thread: of fewer, threads share the blocks of a head.
_MIN_WHOLE_HEADS = 8
_MAX = {"int8": 127.0, "fp8": 448.0}  # the largest magnitude that a type holds


class _Attention(NamedTuple):
    """The operands of one layer's attention; key and value are None if packed into query.

    Of a layer that shares keys and values they have no rows, and past is the other's present.
    """

    query: Value
    key: Value | None
    value: Value | None
    past_key: Value
    past_value: Value
    layer: LayerSpec
    number: int
    sinks: Value | None


class OrtAttention:
    """The inputs of a graph for ONNX Runtime and the attention of its layers; see OrtDialect."""

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        *,
        kv: KvType,
        context: int,
        activations: Activations,
        window_rows: Mapping[int, int] | None = None,
        batch: bool = False,
        single: bool = False,
    ) -> None:
        self.graph = graph
        self.weights = weights
        self.spec = weights.checkpoint.spec
        self.kv = kv
        # The CPU has no kernels for fp8: in its check an fp32 cache holds values rounded to fp8.
        self.stored: KvType = "fp32" if (kv, activations) == ("fp8", "fp32") else kv
        self.activations = activations
        batch = (batch or activations == "fp32") and not single
        self.batch = batch_axis(self.spec, kv, activations) if batch else 1
        self.tokens = self.graph.input("tokens", ir.DataType.INT64, (self.batch, "T"))
        self.past_length = self.graph.input("past_length", ir.DataType.INT64, (self.batch,))
        self.last_position = self.graph.input("last_position", ir.DataType.INT32, (self.batch,))
        self.total_length = self.graph.input("total_length", ir.DataType.INT32, ())
        self.logits_positions = self.graph.input("logits_positions", ir.DataType.INT64, ("P",))
        self.rotary = RotaryTables(self.graph, self.spec, context, activations)
        self.cache = KvCacheIO(
            self.graph,
            self.spec,
            _CACHE_TYPES.get(self.stored, DTYPES[activations]),
            past_rows="capacity",
            present_rows="capacity",
            state_dtype=DTYPES[activations],
            batch=self.batch,
            window_rows=window_rows,
        )
        self.query_factors = QueryFactors(self.graph, context, activations)
        self._presents: dict[int, tuple[Value, Value]] = self.cache.borrow()
        # Before the fused node, which rotates by the last row: an assistant's query is behind it.
        self._rotates_first = self.spec.qk_norm_after_rope or self.spec.assistant is not None
        self._prefill: Value | None = None
        self._position_rows: Value | None = None
        self._total: Value | None = None

    def split_gate(self, qkv: Value, layer: LayerSpec) -> tuple[Value, Value]:
        """See Dialect."""
        return split_gate(self.graph, self.spec, layer, qkv)

    def scale_by_gate(self, x: Value, gate: Value) -> Value:
        """See Dialect."""
        return scale_by_gate(self.graph, x, gate)

    def start_part(self) -> None:
        """See Dialect."""
        self.graph.start_part()

    def norm(self, x: Value, name: str, weight: torch.Tensor) -> Value:
        """RMS norm over the last axis."""
        raise NotImplementedError

    def attention(
        self,
        qkv: Value,
        index: int,
        layer: LayerSpec,
        qk_norm: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> Value:
        query, key, value = qkv, None, None
        if layer.shares_kv_of is not None:
            past_key, past_value = self._presents[layer.shares_kv_of]
            key = value = self._no_rows(layer)
            if qk_norm is not None:
                name = f"layers.{index}.self_attn.q_norm"
                query = self._norm_per_head(qkv, name, qk_norm[0], self.spec.heads(layer).dim)
            if self._rotates_first and layer.rope:
                query = self._rotate(query, layer.rope, self.spec.heads(layer).queries)
        else:
            past_key, past_value = self.cache.past(index)
            if qk_norm is not None:
                query, key, value = self._normed_heads(qkv, index, layer, qk_norm)
        if (factors := self.query_factors[layer.query_growth]) is not None:
            if key is None:
                query, key, value = self._split(qkv, layer)
            rows = self.graph.op("Gather", factors, self._positions(), axis=0)
            query = self.graph.op("Mul", query, rows)
        sinks = None
        if self.spec.attention_sinks:
            name = f"layers.{index}.self_attn.sinks"
            sinks = write_floats(self.graph, name, self.weights.sinks(index), self.activations)
        operands = _Attention(query, key, value, past_key, past_value, layer, index, sinks)
        scales = self._cache_scales(index) if self.kv in _CACHE_TYPES else None
        if layer.shares_kv_of is not None:
            return self._attend_shared(operands, scales)
        if scales is None or self.activations != "fp32":
            out, present_key, present_value = self._attend(operands, scales)
        elif self.kv == "int8":
            out, present_key, present_value = self.graph.branch(
                self._is_prefill(),
                lambda: self._attend_dequantized(operands, scales),
                lambda: self._attend(operands, scales),
                name=f"layers.{index}.attention",
            )
        else:
            out, present_key, present_value = self._attend_dequantized(operands, scales)
        self.cache.present(index, present_key, present_value)
        self._presents[index] = present_key, present_value
        return out

    def _attend_shared(self, operands: "_Attention", scales: tuple[Value, Value] | None) -> Value:
        """Over the rows of another layer, to which nothing is appended."""
        if scales is None or self.activations != "fp32":
            return self._attend(operands, scales)[0]
        rows = self._total_rows()

        def dequantized() -> tuple[Value, ...]:
            caches = zip((operands.past_key, operands.past_value), scales, strict=True)
            key, value = (self._dequantize(*one, rows) for one in caches)
            return self._attend(operands._replace(past_key=key, past_value=value), None)[:1]

        if self.kv != "int8":
            return dequantized()[0]
        [out] = self.graph.branch(
            self._is_prefill(),
            dequantized,
            lambda: self._attend(operands, scales)[:1],
            name=f"layers.{operands.number}.attention",
        )
        return out

    def _no_rows(self, layer: LayerSpec) -> Value:
        """Keys, or values, of no token: [1, 0, kv_size]."""
        width = self.spec.heads(layer).kv_size
        empty = np.zeros((1, 0, width), dtype=DTYPES[self.activations].numpy())
        return self.graph.constant(f"no_rows.{width}", empty)

    def _total_rows(self) -> Value:
        """Tokens in the cache after this run, int64 [1]; one node for all layers."""
        if self._total is None:
            count = self.graph.op("Shape", self.tokens, start=1, end=2)
            self._total = self.graph.op("Add", self.past_length, count)
        return self._total

    def _attend(
        self, operands: "_Attention", scales: tuple[Value, Value] | None
    ) -> tuple[Value, ...]:
        """One fused node: rotate, append, attend. Returns output, present key and value."""
        layer, heads = operands.layer, self.spec.heads(operands.layer)
        rope = None if self._rotates_first else layer.rope
        cos, sin = self.rotary[rope] if rope else (None, None)
        quantized = scales is not None
        # Nothing is appended to a shared cache, and without outputs for it nothing is copied; the
        # kernel for int8 caches demands them.
        shared = layer.shares_kv_of is not None and not quantized
        sinks = operands.sinks
        if sinks is None and quantized and self.activations == "fp32":
            sinks = self._no_sinks(heads.queries)
        found = self.graph.op(
            "GroupQueryAttention",
            operands.query,
            operands.key,
            operands.value,
            operands.past_key,
            operands.past_value,
            self.last_position,
            self.total_length,
            cos,
            sin,
            *((None, None, sinks) if sinks or scales else ()),
            *(scales or ()),
            domain=MICROSOFT,
            outputs=1 if shared else 3,
            name=f"layers.{operands.number}.attention",
            num_heads=heads.queries,
            kv_num_heads=heads.keys,
            scale=self.spec.attention_scale,
            do_rotary=int(rope is not None),
            local_window_size=layer.window,
            softcap=self.spec.attention_softcap,
            sliding_window_cache=1 if self._holds_window(operands) else None,
            k_quant_type="PER_TENSOR" if quantized else None,
            v_quant_type="PER_TENSOR" if quantized else None,
            kv_cache_bit_width=8 if quantized else None,
        )
        return found if isinstance(found, tuple) else (found,)

    def _no_sinks(self, heads: int) -> Value | None:
        """Sinks [heads] of no weight: with them the CPU's int8 kernel takes all rows at once."""
        if heads < _MIN_WHOLE_HEADS:
            return None  # in blocks of rows, as without sinks
        lowest = np.full(heads, np.finfo(np.float32).min, dtype=np.float32)
        return self.graph.constant(f"no_sinks.{heads}", lowest)

    def _attend_dequantized(
        self, operands: "_Attention", scales: tuple[Value, Value]
    ) -> tuple[Value, ...]:
        """Over an 8-bit cache: attend in fp32, then quantize and append the new rows.

        The kernel for int8 caches is made for one query: over 512 it is four times slower than
        the fp32 one, and dequantizing what lies in the cache takes little time in comparison.
        """
        caches = (operands.past_key, operands.past_value)
        if self._holds_window(operands):
            return self._attend_dequantized_window(operands, scales)
        key, value = (
            self._dequantize(*one, self.past_length) for one in zip(caches, scales, strict=True)
        )
        out, *grown = self._attend(operands._replace(past_key=key, past_value=value), None)
        presents = [
            self._append(cache, rows, scale)
            for cache, rows, scale in zip(caches, grown, scales, strict=True)
        ]
        return (out, *presents)

    def _attend_dequantized_window(
        self, operands: "_Attention", scales: tuple[Value, Value]
    ) -> tuple[Value, ...]:
        """The same where rows move: all are quantized again, which gives old ones their levels."""
        caches = (operands.past_key, operands.past_value)
        key, value = (
            self.graph.op("DequantizeLinear", *one) for one in zip(caches, scales, strict=True)
        )
        out, *rows = self._attend(operands._replace(past_key=key, past_value=value), None)
        dtype: Any = _CACHE_TYPES[self.kv].value
        presents = [
            self.graph.op("QuantizeLinear", *one, output_dtype=dtype)
            for one in zip(rows, scales, strict=True)
        ]
        return (out, *presents)

    def _holds_window(self, operands: "_Attention") -> bool:
        return operands.number in self.cache.window_rows

    def _dequantize(self, cache: Value, scale: Value, rows: Value) -> Value:
        """The filled part of the cache as fp32 [1, heads, rows, head_dim]."""
        zero = self.graph.constant("zero", np.array([0], dtype=np.int64))
        filled = self.graph.op("Slice", cache, zero, rows, self._position_axis())
        if self.stored == "fp32":
            return filled  # type: ignore[no-any-return]
        return self.graph.op("DequantizeLinear", filled, scale)  # type: ignore[no-any-return]

    def _append(self, cache: Value, rows: Value, scale: Value) -> Value:
        """Round the fp32 rows after `past_length` and write them to the cache, in place."""
        end = self.graph.constant("end", np.array([np.iinfo(np.int64).max], dtype=np.int64))
        new = self.graph.op("Slice", rows, self.past_length, end, self._position_axis())
        dtype: Any = _CACHE_TYPES[self.kv].value
        levels = self.graph.op("QuantizeLinear", new, scale, output_dtype=dtype)
        if self.stored == "fp32":
            levels = self.graph.op("DequantizeLinear", levels, scale)
        return self.graph.op("TensorScatter", cache, levels, self.past_length, axis=2)  # type: ignore[no-any-return]

    def _position_axis(self) -> Value:
        return self.graph.constant("position_axis", np.array([2], dtype=np.int64))

    def _is_prefill(self) -> Value:
        """Whether more tokens are processed than a speculative step has; one node for all layers.

        Up to there the decode kernel computes each row exactly as it computes a token alone: a
        drafted token is then checked with the logits that it would have had without speculation.
        """
        if self._prefill is None:
            count = self.graph.op("Shape", self.tokens, start=1, end=2)
            most = self.graph.constant("max_verified", np.array([MAX_VERIFIED], dtype=np.int64))
            self._prefill = self.graph.op("Greater", count, most, name="is_prefill")
        return self._prefill

    def _cache_scales(self, index: int) -> tuple[Value, Value]:
        """Scales of a layer's 8-bit keys and values, as scalars; one value where they are equal."""
        scaling = self.weights.layer_kv_scaling(f"layers.{index}.attention")
        largest = _MAX[self.kv]
        key = self._scale(f"layers.{index}.key_scale", scaling.key_range / largest)
        if scaling.value_range == scaling.key_range:
            return key, key
        return key, self._scale(f"layers.{index}.value_scale", scaling.value_range / largest)

    def _scale(self, name: str, scale: float) -> Value:
        return self.graph.constant(name, np.array(scale, dtype=np.float32))

    def _normed_heads(
        self,
        qkv: Value,
        index: int,
        layer: LayerSpec,
        weights: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[Value, Value, Value]:
        # The CPU kernel ignores q_norm_weight and k_norm_weight: the norms are nodes of their own.
        spec, dim = self.spec, self.spec.heads(layer).dim
        query, key, value = self._split(qkv, layer)
        if spec.value_norm:
            weight = self.weights.value_norm(index)
            name = f"layers.{index}.self_attn.v_norm"
            value = self._norm_per_head(value, name, weight, dim)
        if spec.qk_norm_after_rope and layer.rope:
            query = self._rotate(query, layer.rope, spec.heads(layer).queries)
            key = self._rotate(key, layer.rope, spec.heads(layer).keys)
        names = [f"layers.{index}.self_attn.{one}" for one in ("q_norm", "k_norm")]
        if spec.qk_norm == "full":
            query, key = map(self.norm, (query, key), names, weights)
        else:
            query, key = map(self._norm_per_head, (query, key), names, weights, (dim, dim))
        return query, key, value

    def _split(self, qkv: Value, layer: LayerSpec) -> tuple[Value, Value, Value]:
        return split_projected(self.graph, self.spec, layer, qkv)

    def _rotate(self, x: Value, rope: Rope, heads: int) -> Value:
        """Rotary embedding of [1, T, heads * head_dim], before a norm that follows it."""
        cos, sin = self.rotary[rope]
        return self.graph.op(  # type: ignore[no-any-return]
            "RotaryEmbedding",
            x,
            self._positions(),
            cos,
            sin,
            domain=MICROSOFT,
            num_heads=heads,
            rotary_embedding_dim=2 * self.rotary.width(rope),
        )

    def _positions(self) -> Value:
        """Positions of the tokens [batch, T]; one node for all layers."""
        if self._position_rows is None:
            count = self.graph.op("Squeeze", self.graph.op("Shape", self.tokens, start=1, end=2))
            zero, one = (
                self.graph.constant(f"position.{number}", np.array(number, dtype=np.int64))
                for number in (0, 1)
            )
            last = self.graph.constant("axis.last", np.array([1], dtype=np.int64))
            starts = self.graph.op("Unsqueeze", self.past_length, last)
            self._position_rows = self.graph.op(
                "Add", starts, self.graph.op("Range", zero, count, one)
            )
        return self._position_rows

    def _norm_per_head(self, x: Value, name: str, weight: torch.Tensor, dim: int) -> Value:
        heads = np.array([0, 0, -1, dim], dtype=np.int64)
        flat = np.array([0, 0, -1], dtype=np.int64)
        split = self.graph.op("Reshape", x, self.graph.constant(f"shape.heads.{dim}", heads))
        normed = self.norm(split, name, weight)
        return self.graph.op("Reshape", normed, self.graph.constant("shape.flat", flat))  # type: ignore[no-any-return]
