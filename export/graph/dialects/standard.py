"""The `standard` dialect: plugin-free ONNX of opset 24, for TensorRT 10.15 on and TensorRT-RTX.

RMSNormalization, RotaryEmbedding, TensorScatter (which TensorRT turns into an update of the cache
in place) and Attention with an explicit mask and one output. TensorRT rejects Attention with
past and present, and silently drops `nonpad_kv_seqlen`, so neither is used. A cache that is updated
in place has to have a fixed size; attention reads its first rows only, as many as
`cache_positions` has. docs/decisions/cache-capacity.md has the reasons.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from edgelm.export.graph.attention.plain_attention import (
    by_key_head,
    by_query_head,
    masked_softmax,
    scores,
)
from edgelm.export.graph.dtypes import Bias
from edgelm.export.graph.qdq import QdqDialect
from edgelm.export.graph.recurrent.plain_gated_delta import PlainGatedDelta
from edgelm.export.graph.recurrent.plain_mamba2 import PlainMamba2
from edgelm.export.quantize.weights import DeltaWeights, MambaWeights
from edgelm.spec.decoder import LayerSpec, Rope
from edgelm.spec.layers.mixers import GatedDelta, Mamba2

Value = ir.Value


class StandardDialect(QdqDialect):
    """See the module."""

    name = "standard"
    newest = 24
    update = "in_place"
    takes_batches = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._masks: dict[int | None, Value] = {}
        self._presents: dict[int, tuple[Value, Value]] = {}
        # TensorRT's importer refuses the attribute of the soft cap; the op has no sinks; and beside
        # a Scan, as of TensorRT-RTX 1.7, the compiler finds no kernel for it.
        spec = self.spec
        capped = spec.attention_softcap is not None
        self._plain_attention = capped or spec.attention_sinks or spec.has_gated_delta

    def norm(self, x: Value, name: str, weight: torch.Tensor, bias: Bias = None) -> Value:
        if bias is not None:
            return self.layer_norm(x, name, weight, bias)
        return self.graph.op(  # type: ignore[no-any-return]
            "RMSNormalization",
            x,
            self.matrices.floats(f"{name}.weight", weight),
            name=name,
            axis=-1,
            epsilon=self.spec.rms_norm_eps,
        )

    def rotate(self, x: Value, rope: Rope, layer: LayerSpec) -> Value:
        cos, sin = self.rotary[rope]
        rotated = 2 * self.rotary.width(rope)
        partial = rotated if rotated != self.spec.heads(layer).dim else None
        return self.graph.op(  # type: ignore[no-any-return]
            "RotaryEmbedding", x, cos, sin, self.positions, rotary_embedding_dim=partial
        )

    def attend(
        self, query: Value, new: tuple[Value, Value] | None, index: int, layer: LayerSpec
    ) -> Value:
        if new is not None:
            keys, values = (
                self.graph.op("TensorScatter", past, rows, self.past_length, axis=2)
                for past, rows in zip(self.cache.past(index), new, strict=True)
            )
            self.cache.present(index, keys, values)
            self._presents[index] = keys, values
        source = index if layer.shares_kv_of is None else layer.shares_kv_of
        keys, values = (self._filled(rows) for rows in self._presents[source])
        mask = self._mask(layer.window)
        if self._plain_attention:
            heads = self.spec.heads(layer)
            query = by_key_head(self, self.scale(query, self.spec.attention_scale), heads)
            sinks = self.weights.sinks(index) if self.spec.attention_sinks else None
            shares = masked_softmax(self, scores(self, query, keys, heads), mask, sinks, index)
            weighted = self.graph.op("MatMul", by_key_head(self, shares, heads), values)
            return by_query_head(self, weighted, heads)
        return self.graph.op(  # type: ignore[no-any-return]
            "Attention",
            query,
            keys,
            values,
            mask,
            name=f"layers.{index}.attention",
            scale=self.spec.attention_scale,
        )

    def _filled(self, rows: Value) -> Value:
        """The rows of the cache that attention reads: [batch, kv_heads, rows, head_dim]."""
        start, axis = (
            self.graph.constant(f"rows.{name}", np.array([number], dtype=np.int64))
            for name, number in (("start", 0), ("axis", 2))
        )
        return self.graph.op("Slice", rows, start, self.cache_rows(), axis)  # type: ignore[no-any-return]

    def gated_delta(
        self, inputs: Value, index: int, mixer: GatedDelta, weights: DeltaWeights
    ) -> Value:
        return PlainGatedDelta(self, index, mixer).write(inputs, weights)

    def mamba2(self, inputs: Value, index: int, mixer: Mamba2, weights: MambaWeights) -> Value:
        return PlainMamba2(self, index, mixer).write(inputs, weights)

    def gelu(self, x: Value, *, tanh: bool) -> Value:
        return self.graph.op("Gelu", x, approximate="tanh" if tanh else "none")  # type: ignore[no-any-return]

    def _mask(self, window: int | None) -> Value:
        """Which keys a query sees, bool [batch, 1, T, rows]; one for all layers alike."""
        if window not in self._masks:
            keys, queries = self.key_index(), self.query_index()
            visible = self.graph.op("LessOrEqual", keys, queries)
            if window is not None:
                visible = self.within(visible, keys, queries, window)
            self._masks[window] = visible
        return self._masks[window]
