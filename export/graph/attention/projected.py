"""Queries, keys and values out of what a layer projects."""

import numpy as np
import onnx_ir as ir

from edgelm.export.graph.builder import Graph
from edgelm.spec.decoder import DecoderSpec, LayerSpec

Value = ir.Value


def split_projected(
    graph: Graph, spec: DecoderSpec, layer: LayerSpec, qkv: Value
) -> tuple[Value, Value, Value]:
    """[1, T, q], [1, T, kv] and [1, T, kv] of a layer with keys of its own.

    Values are the keys where the layer has no projection for them.
    """
    widths = spec.projected_sizes(layer)
    name = "qkv_sizes" if len(widths) == 3 else "qk_sizes"
    constant = graph.constant(f"{name}.{sum(widths)}", np.array(widths, dtype=np.int64))
    parts = graph.op("Split", qkv, constant, outputs=len(widths), axis=-1)
    return parts[0], parts[1], parts[-1]
