"""The `ort` dialect: ONNX Runtime's own ops, fused where its CPU kernels are.

GroupQueryAttention rotates, appends to the cache in place and attends in one node;
MatMulNBits multiplies by packed 4- or 8-bit weights with int8 arithmetic (accuracy level 4:
without it the CPU kernel is 4 to 240 times slower). Scales are stored in fp16; the Cast that
widens them is folded when a session loads.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch

from edgelm.bundle import CacheContract, GraphContract, TensorContract
from edgelm.errors import UnknownName
from edgelm.export.cache_ports import CachePorts
from edgelm.export.graph import Graph
from edgelm.export.quantize import pack, pack_zero_points
from edgelm.export.quantizer import Quantizer
from edgelm.export.rotary import RotaryTables
from edgelm.export.stored import DTYPES, Activations, rounded, write_floats
from edgelm.export.weights import EMBEDDING, HEAD, Weights
from edgelm.precision import Int4, Int8, KvType, Unquantized, WeightPrecision, describe
from edgelm.spec import LayerSpec

Value = ir.Value
MICROSOFT = "com.microsoft"
_OPSETS = {"": 24, MICROSOFT: 1}


class OrtDialect:
    """Writes a decoder for ONNX Runtime's CPU or CUDA provider into `folder`.

    Args:
        folder: where `model.onnx` and its data file go.
        weights: the source.
        precision: one record for every group of `weights.groups()`.
        kv: type of the cache; `int8` needs weights with a folding.
        context: positions that the rotary tables cover.
        activations: type of the residual stream; CUDA's kernels are made for 16 bits, the CPU's
            for fp32.
        quantizer: rounds matrices; to nearest by default.
    """

    def __init__(
        self,
        folder: Path,
        weights: Weights,
        precision: Mapping[str, WeightPrecision],
        *,
        kv: KvType,
        context: int,
        activations: Activations = "fp32",
        quantizer: Quantizer | None = None,
    ) -> None:
        self.graph = Graph(folder, opsets=_OPSETS)
        self.weights = weights
        self.spec = weights.checkpoint.spec
        self.precision = precision
        self.kv = kv
        self.context = context
        self.activations = activations
        self.quantizer = quantizer or Quantizer(weights)
        self.tokens = self.graph.input("tokens", ir.DataType.INT64, (1, "T"))
        self.past_length = self.graph.input("past_length", ir.DataType.INT64, (1,))
        self.last_position = self.graph.input("last_position", ir.DataType.INT32, (1,))
        self.total_length = self.graph.input("total_length", ir.DataType.INT32, ())
        self.logits_positions = self.graph.input("logits_positions", ir.DataType.INT64, ("P",))
        self._tied: dict[str, Value] = {}
        self.rotary = RotaryTables(self.graph, self.spec, context, activations)
        self.cache = CachePorts(
            self.graph,
            self.spec,
            ir.DataType.INT8 if kv == "int8" else DTYPES[activations],
            past_rows="capacity",
            present_rows="capacity",
        )
        self._prefill: Value | None = None

    def embed(self) -> Value:
        tied = self.spec.tie_word_embeddings
        group = HEAD if tied else EMBEDDING
        precision = self.precision[group]
        if isinstance(precision, Unquantized):
            return self._embed_unquantized(shared=tied)
        precision = _grouped(precision, group)
        if self.spec.hidden_size % precision.group_size:
            return self._embed_unquantized(shared=False)
        packed = self._packed(group, lambda: self.weights.matrix(group), precision)
        bits = 4 if isinstance(precision, Int4) else 8
        rows = self.spec.vocab_size
        data = self.graph.view(
            "embedding.rows", packed["levels"], (rows, self.spec.hidden_size * bits // 8)
        )
        if tied:
            self._tied = packed
        return self.graph.op(  # type: ignore[no-any-return]
            "GatherBlockQuantized",
            data,
            self.tokens,
            self._wide(packed["scales"]),
            packed.get("zero_points"),
            domain=MICROSOFT,
            name="embed",
            bits=bits,
            block_size=precision.group_size,
            gather_axis=0,
            quantize_axis=1,
        )

    def _embed_unquantized(self, *, shared: bool) -> Value:
        group = HEAD if self.spec.tie_word_embeddings else EMBEDDING
        matrix = self.weights.matrix(group)
        precision = self.precision[group]
        if isinstance(precision, Unquantized):
            matrix = rounded(matrix, precision)
        table = self._floats("embedding.weight", matrix)
        if shared:
            self._tied = {"weight": table}
        return self.graph.op("Gather", table, self.tokens, name="embed", axis=0)  # type: ignore[no-any-return]

    def linear(
        self, x: Value, group: str, matrix: Callable[[], torch.Tensor], bias: torch.Tensor | None
    ) -> Value:
        precision = self.precision[group]
        offset = None if bias is None else self._floats(f"{group}.bias", bias)
        if isinstance(precision, Unquantized):
            weight = self._tied.get("weight") if group == HEAD else None
            if weight is None:
                weight = self._floats(f"{group}.weight", rounded(matrix(), precision))
            y = self.graph.op("FusedMatMul", x, weight, domain=MICROSOFT, name=group, transB=1)
            return y if offset is None else self.add(y, offset)
        precision = _grouped(precision, group)
        packed = self._tied if group == HEAD and self._tied else None
        if packed is None:
            packed = self._packed(group, matrix, precision)
        features = self.weight_shape(group)
        return self.graph.op(  # type: ignore[no-any-return]
            "MatMulNBits",
            x,
            packed["levels"],
            self._wide(packed["scales"]),
            packed.get("zero_points"),
            None,
            offset,
            domain=MICROSOFT,
            name=group,
            N=features[0],
            K=features[1],
            bits=4 if isinstance(precision, Int4) else 8,
            block_size=precision.group_size,
            accuracy_level=4,
        )

    def weight_shape(self, group: str) -> tuple[int, int]:
        """[out_features, in_features] of a group."""
        shapes = [self.weights.checkpoint.shapes[n] for n in self.weights.tensor_names(group)]
        return sum(shape[0] for shape in shapes), shapes[0][1]

    def norm(self, x: Value, name: str, weight: torch.Tensor) -> Value:
        return self.graph.op(  # type: ignore[no-any-return]
            "SimplifiedLayerNormalization",
            x,
            self._norm_weight(name, weight),
            name=name,
            axis=-1,
            epsilon=self.spec.rms_norm_eps,
        )

    def add_norm(
        self, stream: Value, delta: Value, name: str, weight: torch.Tensor
    ) -> tuple[Value, Value]:
        normed, _, _, total = self.graph.op(
            "SkipSimplifiedLayerNormalization",
            stream,
            delta,
            self._norm_weight(name, weight),
            domain=MICROSOFT,
            outputs=4,
            name=name,
            epsilon=self.spec.rms_norm_eps,
        )
        return normed, total

    def add(self, x: Value, y: Value) -> Value:
        return self.graph.op("Add", x, y)  # type: ignore[no-any-return]

    def scale(self, x: Value, factor: float) -> Value:
        array = np.array(factor, dtype=DTYPES[self.activations].numpy())
        constant = self.graph.constant(f"factor.{factor}", array)
        return self.graph.op("Mul", x, constant)  # type: ignore[no-any-return]

    def attention(
        self,
        qkv: Value,
        index: int,
        layer: LayerSpec,
        qk_norm: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> Value:
        past_key, past_value = self.cache.past(index)
        query, key, value = qkv, None, None
        if qk_norm is not None:
            query, key, value = self._normed_heads(qkv, index, qk_norm)
        operands = _Attention(query, key, value, past_key, past_value, layer, index)
        if self.kv == "int8":
            scales = self._kv_scales(index)
            out, present_key, present_value = self.graph.branch(
                self._is_prefill(),
                lambda: self._attend_dequantized(operands, scales),
                lambda: self._attend(operands, scales),
                name=f"layers.{index}.attention",
            )
        else:
            out, present_key, present_value = self._attend(operands, None)
        self.cache.present(index, present_key, present_value)
        return out

    def _attend(
        self, operands: "_Attention", scales: tuple[Value, Value] | None
    ) -> tuple[Value, ...]:
        """One fused node: rotate, append, attend. Returns output, present key and value."""
        layer = operands.layer
        cos, sin = self.rotary[layer.rope] if layer.rope else (None, None)
        quantized = scales is not None
        return self.graph.op(  # type: ignore[no-any-return]
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
            *((None, None, None, *scales) if scales else ()),
            domain=MICROSOFT,
            outputs=3,
            name=f"layers.{operands.number}.attention",
            num_heads=self.spec.num_attention_heads,
            kv_num_heads=self.spec.num_key_value_heads,
            scale=self.spec.attention_scale,
            do_rotary=int(layer.rope is not None),
            local_window_size=layer.window,
            softcap=self.spec.attention_softcap,
            k_quant_type="PER_TENSOR" if quantized else None,
            v_quant_type="PER_TENSOR" if quantized else None,
            kv_cache_bit_width=8 if quantized else None,
        )

    def _attend_dequantized(
        self, operands: "_Attention", scales: tuple[Value, Value]
    ) -> tuple[Value, ...]:
        """Prefill over an int8 cache: attend in fp32, then quantize and append the new rows.

        The kernel for int8 caches is made for one query: over 512 it is four times slower than
        the fp32 one, and dequantizing what lies in the cache costs next to nothing beside that.
        """
        caches = (operands.past_key, operands.past_value)
        widened = [self._widen(cache, scale) for cache, scale in zip(caches, scales, strict=True)]
        operands = operands._replace(past_key=widened[0], past_value=widened[1])
        out, *grown = self._attend(operands, None)
        presents = [
            self._append(cache, rows, scale)
            for cache, rows, scale in zip(caches, grown, scales, strict=True)
        ]
        return (out, *presents)

    def _widen(self, cache: Value, scale: Value) -> Value:
        """The filled part of an int8 cache as fp32 [1, heads, past_length, head_dim]."""
        zero = self.graph.constant("zero", np.array([0], dtype=np.int64))
        filled = self.graph.op("Slice", cache, zero, self.past_length, self._position_axis())
        return self.graph.op("DequantizeLinear", filled, scale)  # type: ignore[no-any-return]

    def _append(self, cache: Value, rows: Value, scale: Value) -> Value:
        """Write the rows after `past_length` of an fp32 tensor into the int8 cache, in place."""
        end = self.graph.constant("end", np.array([np.iinfo(np.int64).max], dtype=np.int64))
        new = self.graph.op("Slice", rows, self.past_length, end, self._position_axis())
        levels = self.graph.op("QuantizeLinear", new, scale, self._int8_zero())
        return self.graph.op("TensorScatter", cache, levels, self.past_length, axis=2)  # type: ignore[no-any-return]

    def _int8_zero(self) -> Value:
        return self.graph.constant("int8.zero", np.array(0, dtype=np.int8))

    def _position_axis(self) -> Value:
        return self.graph.constant("position_axis", np.array([2], dtype=np.int64))

    def _is_prefill(self) -> Value:
        """Whether more than one token is processed; one node for all layers."""
        if self._prefill is None:
            count = self.graph.op("Shape", self.tokens, start=1, end=2)
            one = self.graph.constant("one", np.array([1], dtype=np.int64))
            self._prefill = self.graph.op("Greater", count, one, name="is_prefill")
        return self._prefill

    def gated(self, gate_up: Value) -> Value:
        gate, up = self.graph.op("Split", gate_up, outputs=2, axis=-1, num_outputs=2)
        if self.spec.hidden_act == "silu":
            activated = self.graph.op("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)
        elif self.spec.hidden_act == "gelu_tanh":
            activated = self.graph.op("FastGelu", gate, domain=MICROSOFT)
        else:
            activated = self.graph.op("Gelu", gate, domain=MICROSOFT)
        return self.graph.op("Mul", activated, up)  # type: ignore[no-any-return]

    def select_positions(self, x: Value) -> Value:
        return self.graph.op("Gather", x, self.logits_positions, axis=1)  # type: ignore[no-any-return]

    def finish(self, logits: Value) -> None:
        if cap := self.spec.logits_softcap:
            logits = self.scale(self.graph.op("Tanh", self.scale(logits, 1 / cap)), cap)
        if self.activations != "fp32":
            logits = self.graph.op("Cast", logits, to=ir.DataType.FLOAT.value)
        self.graph.output(logits, "logits", ir.DataType.FLOAT, (1, "P", self.spec.vocab_size))

    def save(self) -> GraphContract:
        """Write the graph and describe it."""
        self.graph.save()
        vocab = self.spec.vocab_size
        return GraphContract(
            file="model.onnx",
            data=self.graph.data_name,
            dialect="ort",
            opsets={domain or "ai.onnx": version for domain, version in _OPSETS.items()},
            inputs={
                "tokens": TensorContract("tokens", "int64", (1, "T")),
                "past_length": TensorContract("past_length", "int64", (1,)),
                "last_position": TensorContract("last_position", "int32", (1,)),
                "total_length": TensorContract("total_length", "int32", ()),
                "logits_positions": TensorContract("logits_positions", "int64", ("P",)),
            },
            outputs={"logits": TensorContract("logits", "float32", (1, "P", vocab))},
            cache=CacheContract(
                dtype=self.kv,
                num_key_value_heads=self.spec.num_key_value_heads,
                head_dim=self.spec.head_dim,
                layers=tuple(self.cache.layers),
            ),
        )

    def _kv_scales(self, index: int) -> tuple[Value, Value]:
        """Scales of a layer's int8 keys and values, as scalars."""
        folding = self.weights.layer_folding(f"layers.{index}.attention")
        key, value = (
            self.graph.constant(f"layers.{index}.{kind}_scale", np.array(scale, dtype=np.float32))
            for kind, scale in (("key", folding.key_scale), ("value", folding.value_scale))
        )
        return key, value

    def _normed_heads(
        self, qkv: Value, index: int, weights: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[Value, Value, Value]:
        # The CPU kernel ignores q_norm_weight and k_norm_weight: the norms are nodes of their own.
        spec = self.spec
        sizes = np.array([spec.q_size, spec.kv_size, spec.kv_size], dtype=np.int64)
        query, key, value = self.graph.op(
            "Split", qkv, self.graph.constant("qkv_sizes", sizes), outputs=3, axis=-1
        )
        prefix = f"layers.{index}.self_attn"
        if spec.qk_norm == "full":
            query = self.norm(query, f"{prefix}.q_norm", weights[0])
            key = self.norm(key, f"{prefix}.k_norm", weights[1])
            return query, key, value
        query = self._norm_per_head(query, f"{prefix}.q_norm", weights[0])
        key = self._norm_per_head(key, f"{prefix}.k_norm", weights[1])
        return query, key, value

    def _norm_per_head(self, x: Value, name: str, weight: torch.Tensor) -> Value:
        heads = np.array([0, 0, -1, self.spec.head_dim], dtype=np.int64)
        flat = np.array([0, 0, -1], dtype=np.int64)
        split = self.graph.op("Reshape", x, self.graph.constant("shape.heads", heads))
        normed = self.norm(split, name, weight)
        return self.graph.op("Reshape", normed, self.graph.constant("shape.flat", flat))  # type: ignore[no-any-return]

    def _packed(
        self, group: str, matrix: Callable[[], torch.Tensor], precision: Int4 | Int8
    ) -> dict[str, Value]:
        quantized = self.quantizer(group, matrix, precision)
        packed = {
            "levels": self.graph.weight(f"{group}.levels", pack(quantized).numpy()),
            "scales": self.graph.weight(f"{group}.scales", quantized.scales.numpy()),
        }
        zeros = pack_zero_points(quantized)
        if zeros is not None:
            packed["zero_points"] = self.graph.weight(f"{group}.zero_points", zeros.numpy())
        return packed

    def _wide(self, scales: Value) -> Value:
        """Scales, stored in fp16, in the type of the activations."""
        if self.activations == "fp16":
            return scales
        return self.graph.op("Cast", scales, to=DTYPES[self.activations].value)  # type: ignore[no-any-return]

    def _norm_weight(self, name: str, weight: torch.Tensor) -> Value:
        return self._floats(f"{name}.weight", weight)

    def _floats(self, name: str, tensor: torch.Tensor) -> Value:
        """A tensor in the type of the activations."""
        return write_floats(self.graph, name, tensor, self.activations)


def _grouped(precision: WeightPrecision, group: str) -> Int4 | Int8:
    if isinstance(precision, Int4 | Int8) and precision.group_size:
        return precision
    raise UnknownName(
        f"{group}: ONNX Runtime has no {describe(precision)} weights; it has fp32, fp16, bf16, and "
        "int4 and int8 in groups"
    )


class _Attention(NamedTuple):
    """The operands of one layer's attention; key and value are None if packed into query."""

    query: Value
    key: Value | None
    value: Value | None
    past_key: Value
    past_value: Value
    layer: LayerSpec
    number: int
