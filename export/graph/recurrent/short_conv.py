"""Causal convolutions over a few tokens, LFM2's and those in front of matrix states.

They are written in primitive ops for every engine. ONNX Runtime's CausalConvWithState takes six
times as long for a chunk of a prompt: its CPU kernel takes channel by channel, in steps of a whole
row, and its SiLU is scalar.
"""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch

from edgelm.export.graph.attention.kv_cache import KvCacheIO
from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import Activations, write_floats

Value = ir.Value


class ConvWeights(NamedTuple):
    """Kernel [H, 1, K] and bias [H] of one layer."""

    layer: int
    kernel: torch.Tensor
    bias: torch.Tensor | None


def short_conv(
    graph: Graph, cache: KvCacheIO, gates: Value, weights: ConvWeights, activations: Activations
) -> Value:
    """`c * conv(b * x)` of gates b, c, x side by side [1, T, 3 H]."""
    name = f"layers.{weights.layer}.conv"
    before, after, x = _parts(graph, gates, weights.kernel)
    products = graph.op("Mul", before, x)
    total = causal_conv(graph, cache, products, weights, activations, name=name)
    if weights.bias is not None:
        bias = write_floats(graph, f"{name}.bias", weights.bias.reshape(1, 1, -1), activations)
        total = graph.op("Add", total, bias)
    return graph.op("Mul", after, total)  # type: ignore[no-any-return]


def causal_conv(
    graph: Graph,
    cache: KvCacheIO,
    x: Value,
    weights: ConvWeights,
    activations: Activations,
    *,
    name: str,
) -> Value:
    """The convolution of [1, T, H] as a sum of K shifted products.

    There are no transposes, and TensorRT fuses it into one pass. The past state has one reader, so
    that the new one may take its memory.
    """
    op = graph.op
    rows = op("Concat", cache.past_state(weights.layer), x, axis=1)
    taps = weights.kernel.shape[2]
    end = np.iinfo(np.int64).max
    cache.present_state(weights.layer, _rows(graph, rows, 1 - taps, end))
    total: Value | None = None
    for tap in range(taps):
        column = weights.kernel[:, 0, tap].reshape(1, 1, -1)
        factor = write_floats(graph, f"{name}.weight.{tap}", column, activations)
        shifted = _rows(graph, rows, tap, tap + 1 - taps if tap + 1 < taps else end)
        term = op("Mul", shifted, factor)
        total = term if total is None else op("Add", total, term)
    assert total is not None
    return total


def _parts(graph: Graph, gates: Value, kernel: torch.Tensor) -> tuple[Value, Value, Value]:
    sizes = np.array([kernel.shape[0]] * 3, dtype=np.int64)
    constant = graph.constant("conv_sizes", sizes)
    return graph.op("Split", gates, constant, outputs=3, axis=-1)  # type: ignore[no-any-return]


def _rows(graph: Graph, x: Value, start: int, end: int) -> Value:
    """Rows `start` to `end` of [1, T, H]; negative ones count from the end."""
    bounds = [graph.constant(f"row.{at}", np.array([at], dtype=np.int64)) for at in (start, end, 1)]
    return graph.op("Slice", x, *bounds)  # type: ignore[no-any-return]
