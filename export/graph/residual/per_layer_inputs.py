"""The inputs that every layer has of its own (Gemma 4), in ops that every engine has.

A token's channels for all layers are the row of a second embedding plus a projection of the first
one's, normed for each layer. A layer takes its part of them.
"""

import math
from typing import Protocol

import numpy as np
import onnx_ir as ir
import torch

from edgelm.export.graph.builder import Graph
from edgelm.export.quantize.weights import Weights
from edgelm.spec.decoder import DecoderSpec

Value = ir.Value


class _Dialect(Protocol):
    graph: Graph

    def embed_per_layer(self) -> Value: ...
    def norm(self, x: Value, name: str, weight: torch.Tensor) -> Value: ...
    def scale(self, x: Value, factor: float) -> Value: ...
    def add(self, x: Value, y: Value) -> Value: ...


def join_inputs(dialect: _Dialect, weights: Weights, projected: Value) -> Value:
    """The inputs of all layers [1, T, layers * size], of the embedding's projection.

    `(norm(projected / sqrt(hidden)) + sqrt(size) * row) / sqrt(2)`; the last factor is in the norm.
    """
    spec = weights.checkpoint.spec
    inputs = spec.per_layer_inputs
    assert inputs is not None
    by_layer = dialect.graph.reshape(projected, (0, 0, -1, inputs.size))
    by_layer = dialect.scale(by_layer, spec.hidden_size**-0.5)
    name = "per_layer_projection_norm"
    normed = dialect.norm(by_layer, name, weights.norm(name) * math.sqrt(0.5))
    flat = dialect.graph.reshape(normed, (0, 0, -1))
    row = dialect.scale(dialect.embed_per_layer(), math.sqrt(inputs.size / 2))
    return dialect.add(flat, row)


def layer_part(dialect: _Dialect, spec: DecoderSpec, joined: Value, index: int) -> Value:
    """The inputs of one layer [1, T, size]."""
    assert spec.per_layer_inputs is not None
    size, graph = spec.per_layer_inputs.size, dialect.graph
    start, end, axis = (
        graph.constant(f"per_layer.at.{number}", np.array([number], dtype=np.int64))
        for number in (index * size, (index + 1) * size, 2)
    )
    return graph.op("Slice", joined, start, end, axis)  # type: ignore[no-any-return]


def per_layer_tokens(graph: Graph, spec: DecoderSpec, tokens: Value) -> Value:
    """The rows of the per-layer embedding: the tokens, or 0 for one that the table lacks."""
    assert spec.per_layer_inputs is not None
    rows = spec.per_layer_inputs.vocab_size
    if rows >= spec.vocab_size:
        return tokens
    end, first = (
        graph.constant(f"per_layer.row.{number}", np.array(number, dtype=np.int64))
        for number in (rows, 0)
    )
    return graph.op("Where", graph.op("Less", tokens, end), tokens, first)  # type: ignore[no-any-return]
