"""What a quantized source does to the inputs of a matrix before they meet its levels.

ModelOpt multiplies them by `pre_quant_scale`; with act-order GPTQ's groups are of columns that are
not neighbors, which reordering the inputs makes them.
"""

import onnx_ir as ir

from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import Activations, write_floats
from edgelm.quantize.grids import Inputs

Value = ir.Value


def prepare_inputs(
    graph: Graph, x: Value, group: str, inputs: Inputs, activations: Activations
) -> Value:
    """`(x * factors)[..., order]` of [1, T, K]."""
    if inputs.factors is not None:
        factors = write_floats(graph, f"{group}.input_factors", inputs.factors, activations)
        x = graph.op("Mul", x, factors, name=f"{group}.scale_inputs")
    if inputs.order is not None:
        order = graph.weight(f"{group}.input_order", inputs.order.numpy())
        x = graph.op("Gather", x, order, axis=-1, name=f"{group}.reorder_inputs")
    return x
