"""The `decomposed` dialect: primitive ops of opset 21 (or 17) only, for TensorRT up to 10.13.

Those have neither TensorScatter nor fused Attention. A scatter in primitive ops would copy the
whole cache for each token, and so would concatenating new rows to it. Instead scores against the
cache and scores against the new rows are computed apart and only they are concatenated; new rows
leave the graph as outputs, and the runtime copies them behind the old ones (`update` append).
docs/decisions/decomposed-cache.md has the reasons.
"""

import math
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


class DecomposedDialect(QdqDialect):
    """See the module."""

    name = "decomposed"
    newest = 21
    update = "append"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._masks: dict[int | None, Value] = {}
        # Old keys and values of a layer, then its new ones, which other layers may read.
        self._rows_of: dict[int, tuple[Value, Value, Value, Value]] = {}
        self._angles: dict[str, tuple[Value, Value]] = {}

    def norm(self, x: Value, name: str, weight: torch.Tensor, bias: Bias = None) -> Value:
        if bias is not None:
            return self.layer_norm(x, name, weight, bias)
        wide = self.cast(x, "fp32") if self.activations != "fp32" else x
        squares = self.graph.op("Mul", wide, wide)
        if self.opset < 18:
            mean = self.graph.op("ReduceMean", squares, axes=[-1])
        else:
            mean = self.graph.op("ReduceMean", squares, self._last_axis())
        steady = self.graph.op("Add", mean, self.number(self.spec.rms_norm_eps, "fp32"))
        root = self.graph.op("Sqrt", steady)
        normed = self.graph.op("Div", wide, root)
        if self.activations != "fp32":
            normed = self.cast(normed, self.activations)
        return self.graph.op(  # type: ignore[no-any-return]
            "Mul", normed, self.matrices.floats(f"{name}.weight", weight), name=name
        )

    def rotate(self, x: Value, rope: Rope, layer: LayerSpec) -> Value:
        cos, sin = self._rows_of_tables(rope)
        half, head = self.rotary.width(rope), self.spec.heads(layer).dim
        sizes = [half, half, head - 2 * half][: 3 if 2 * half < head else 2]
        split = self.graph.constant(f"rotary.{sizes}", np.array(sizes, dtype=np.int64))
        first, second, *rest = self.graph.op("Split", x, split, outputs=len(sizes), axis=-1)
        op = self.graph.op
        rotated = (
            op("Sub", op("Mul", first, cos), op("Mul", second, sin)),
            op("Add", op("Mul", second, cos), op("Mul", first, sin)),
        )
        return op("Concat", *rotated, *rest, axis=-1)  # type: ignore[no-any-return]

    def attend(
        self, query: Value, new: tuple[Value, Value] | None, index: int, layer: LayerSpec
    ) -> Value:
        if new is not None:
            # A graph's output needs a node of its own.
            key, value = (self.graph.op("Identity", rows) for rows in new)
            self._rows_of[index] = (*self.cache.past(index), key, value)
            self.cache.present(index, key, value)
        source = index if layer.shares_kv_of is None else layer.shares_kv_of
        past_key, past_value, key, value = self._rows_of[source]
        if new is not None:
            key, value = new
        heads = self.spec.heads(layer)
        query = by_key_head(self, self.scale(query, self.spec.attention_scale), heads)
        both = [scores(self, query, keys, heads) for keys in (past_key, key)]
        joined = self.graph.op("Concat", *both, axis=-1)
        sinks = self.weights.sinks(index) if self.spec.attention_sinks else None
        shares = masked_softmax(self, joined, self._mask(layer.window), sinks, index)
        before, after = (
            self.graph.op("MatMul", by_key_head(self, part, heads), values)
            for part, values in zip(self._cut(shares), (past_value, value), strict=True)
        )
        return by_query_head(self, self.add(before, after), heads)

    def _cut(self, shares: Value) -> tuple[Value, Value]:
        """The shares of cached keys and those of new ones."""
        ends = np.array([0, np.iinfo(np.int64).max], dtype=np.int64)
        start, end = (self.graph.constant(f"cut.{one}", ends[one : one + 1]) for one in range(2))
        middle = self.cache_rows()
        old = self.graph.op("Slice", shares, start, middle, self._last_axis())
        return old, self.graph.op("Slice", shares, middle, end, self._last_axis())

    def _last_axis(self) -> Value:
        return self.graph.constant("axis.last", np.array([-1], dtype=np.int64))

    def _mask(self, window: int | None) -> Value:
        """Which keys a query sees, bool [1, 1, T, capacity + T]; one for all layers alike."""
        if window not in self._masks:
            queries = self.query_index()
            cached = self.graph.op("Less", self.key_index(), self.past_length)
            shape = np.array([1, 1, 1, -1], dtype=np.int64)
            keys = self.graph.op(
                "Reshape", self.positions, self.graph.constant("shape.keys", shape)
            )
            causal = self.graph.op("LessOrEqual", keys, queries)
            # The same for every query, but Concat does not broadcast.
            real = self.graph.op(
                "GreaterOrEqual",
                queries,
                self.graph.constant("position.zero", np.array(0, dtype=np.int64)),
            )
            cached = self.graph.op("And", cached, real)
            if window is not None:
                cached = self.within(cached, self.key_index(), queries, window)
                causal = self.within(causal, keys, queries, window)
            self._masks[window] = self.graph.op("Concat", cached, causal, axis=-1)
        return self._masks[window]

    def _rows_of_tables(self, rope: Rope) -> tuple[Value, Value]:
        """Cosines and sines of the positions, [1, T, dim / 2], which broadcasts over heads."""
        tables = self.rotary[rope]
        key = tables[0].name or ""
        if key not in self._angles:
            cos, sin = (self.graph.op("Gather", table, self.positions, axis=0) for table in tables)
            self._angles[key] = cos, sin
        return self._angles[key]

    def gated_delta(
        self, inputs: Value, index: int, mixer: GatedDelta, weights: DeltaWeights
    ) -> Value:
        return PlainGatedDelta(self, index, mixer).write(inputs, weights)

    def mamba2(self, inputs: Value, index: int, mixer: Mamba2, weights: MambaWeights) -> Value:
        return PlainMamba2(self, index, mixer).write(inputs, weights)

    def gelu(self, x: Value, *, tanh: bool) -> Value:
        number, op = self.number, self.graph.op
        if tanh:
            cube = op("Mul", op("Mul", x, x), x)
            inner = op("Add", x, op("Mul", cube, number(0.044715)))
            shaped = op("Tanh", op("Mul", inner, number(math.sqrt(2 / math.pi))))
        else:
            shaped = op("Erf", op("Mul", x, number(math.sqrt(0.5))))
        half = op("Mul", x, number(0.5))
        return op("Mul", half, op("Add", shaped, number(1.0)))  # type: ignore[no-any-return]
