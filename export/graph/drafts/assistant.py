"""The graph of an assistant (edgelm.spec.assistant), for ONNX Runtime's CPU.

Its inputs are a row of its model's embedding, a hidden state, and its model's keys and values, in
their type: an 8-bit cache's scales are folded into its norms and output projections, as into those
of its model. Its outputs are logits and the hidden state for the next token.
"""

import numpy as np
import onnx_ir as ir
import torch

from edgelm.export.graph.attention.ort_attention import MICROSOFT
from edgelm.export.graph.dialects.ort import OrtDialect
from edgelm.export.quantize.weights import Weights
from edgelm.spec.groups import HEAD
from edgelm.spec.tensor_shapes import CENTROIDS, TOKEN_ORDER

Value = ir.Value


def centroid_logits(dialect: OrtDialect, weights: Weights, hidden: Value) -> Value:
    """Logits [1, 1, vocab_size] of hidden [1, 1, H]; only the nearest parts are computed."""
    graph, spec = dialect.graph, weights.checkpoint.spec
    own = spec.assistant
    assert own is not None
    centroids = graph.weight("assistant.centroids", weights.tensor(CENTROIDS).T.numpy())
    order = weights.checkpoint.tensor(TOKEN_ORDER).to(torch.int32).view(own.centroids, -1)
    parts = graph.weight("assistant.token_order", order.numpy())
    count = graph.constant("active", np.array([own.active], dtype=np.int64))
    _, nearest = graph.op(
        "TopK", graph.op("MatMul", hidden, centroids), count, outputs=2, axis=-1, sorted=0
    )
    tokens = graph.op("Gather", parts, nearest, axis=0)  # [1, 1, active, tokens of a part]
    rows = dialect.look_up(HEAD, "embed", graph.reshape(tokens, (1, -1)))[0]
    logits = graph.op("FusedMatMul", hidden, rows, domain=MICROSOFT, transB=1)
    axes = graph.constant("axis.tokens", np.array([2], dtype=np.int64))
    lowest = graph.op("ReduceMin", logits, axes, keepdims=1)
    shape = graph.constant("shape.logits", np.array([1, 1, spec.vocab_size], dtype=np.int64))
    others = graph.op("Expand", graph.op("Sub", lowest, dialect.number(1.0)), shape)
    tokens = graph.reshape(tokens, (1, 1, -1))
    return graph.op("ScatterElements", others, tokens, logits, axis=2)  # type: ignore[no-any-return]
