"""Attention in primitive ops, for engines without a fused one.

Query heads that share a key head are rows of one matrix product, so that keys and values are never
repeated in memory. Scores and softmax are in fp32.
"""

import numpy as np
import onnx_ir as ir
import torch

from edgelm.export.graph.qdq import QdqDialect
from edgelm.spec.layers.heads import HeadSizes

Value = ir.Value
_MASKED = -1e9  # the score of a key that a query does not see


def scores(dialect: QdqDialect, query: Value, keys: Value, heads: HeadSizes) -> Value:
    """fp32 [1, heads, T, keys], of `by_key_head` queries and keys [1, kv_heads, keys, dim]."""
    op, cap = dialect.graph.op, dialect.spec.attention_softcap
    by_key = op("MatMul", query, op("Transpose", keys, perm=[0, 1, 3, 2]))
    products = by_query_head(dialect, by_key, heads)
    if dialect.activations != "fp32":
        products = dialect.cast(products, "fp32")
    if cap:
        small = op("Mul", products, dialect.number(1 / cap, "fp32"))
        products = op("Mul", op("Tanh", small), dialect.number(cap, "fp32"))
    return products


def masked_softmax(
    dialect: QdqDialect, products: Value, mask: Value, sinks: torch.Tensor | None, index: int
) -> Value:
    """Attention weights of the keys that a query sees, in the type of the activations.

    `sinks` [heads] are one more logit for each head, whose share is dropped.
    """
    op = dialect.graph.op
    visible = op("Where", mask, products, dialect.number(_MASKED, "fp32"))
    if sinks is None:
        shares: Value = op("Softmax", visible, axis=-1)
    else:
        shares = _softmax_with_sinks(dialect, visible, sinks, index)
    return shares if dialect.activations == "fp32" else dialect.cast(shares, dialect.activations)


def _softmax_with_sinks(
    dialect: QdqDialect, visible: Value, sinks: torch.Tensor, index: int
) -> Value:
    op, graph = dialect.graph.op, dialect.graph
    name = f"layers.{index}.self_attn.sinks"
    column = graph.constant(name, sinks.reshape(1, -1, 1, 1).float().numpy())
    zero, one, last = (
        graph.constant(f"at.{at}", np.array([at], dtype=np.int64)) for at in (0, 1, -1)
    )
    # Concat does not broadcast: a column of scores, which are finite, gives the sinks its shape.
    first = op("Slice", visible, zero, one, last)
    column = op("Add", op("Mul", first, dialect.number(0.0, "fp32")), column)
    shares = op("Softmax", op("Concat", visible, column, axis=-1), axis=-1)
    return op("Slice", shares, zero, last, last)  # type: ignore[no-any-return]


def by_key_head(dialect: QdqDialect, x: Value, heads: HeadSizes) -> Value:
    """[1, heads, T, n] -> [1, kv_heads, heads / kv_heads * T, n]; a view, nothing moves."""
    shape = np.array([dialect.kept_batch, heads.keys, -1, 0], dtype=np.int64)
    constant = dialect.graph.constant(f"shape.by_key_head.{heads.keys}", shape)
    return dialect.graph.op("Reshape", x, constant)  # type: ignore[no-any-return]


def by_query_head(dialect: QdqDialect, x: Value, heads: HeadSizes) -> Value:
    """What `by_key_head` did, undone."""
    shape = np.array([dialect.kept_batch, heads.queries, -1, 0], dtype=np.int64)
    constant = dialect.graph.constant(f"shape.by_query_head.{heads.queries}", shape)
    return dialect.graph.op("Reshape", x, constant)  # type: ignore[no-any-return]
