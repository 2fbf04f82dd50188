"""The gate on attention's output (Qwen3.5), in ops that every engine has."""

import numpy as np
import onnx_ir as ir

from edgelm.export.graph.builder import Graph
from edgelm.spec.decoder import DecoderSpec, LayerSpec

Value = ir.Value


def split_gate(
    graph: Graph, spec: DecoderSpec, layer: LayerSpec, qkv: Value
) -> tuple[Value, Value]:
    """Queries, keys and values, and the gate behind them: [1, T, 2 q + 2 kv]."""
    gate = spec.heads(layer).q_size
    sizes = np.array([sum(spec.projected_sizes(layer)), gate], dtype=np.int64)
    constant = graph.constant(f"qkv_gate_sizes.{gate}", sizes)
    return graph.op("Split", qkv, constant, outputs=2, axis=-1)  # type: ignore[no-any-return]


def scale_by_gate(graph: Graph, x: Value, gate: Value) -> Value:
    """`x * sigmoid(gate)`."""
    return graph.op("Mul", x, graph.op("Sigmoid", gate))  # type: ignore[no-any-return]
