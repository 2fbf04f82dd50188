"""Activations of MLPs without a gate, and sparse gates, in ops that every engine has."""

from statistics import NormalDist
from typing import Protocol

import numpy as np
import onnx_ir as ir

from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import DTYPES, Activations
from edgelm.export.quantize.weights import Xielu

Value = ir.Value


class Arithmetic(Protocol):
    """What is needed of a dialect."""

    graph: Graph
    activations: Activations

    def add(self, x: Value, y: Value) -> Value:
        """Elementwise sum."""

    def scale(self, x: Value, factor: float) -> Value:
        """Product with a constant."""

    def number(self, value: float, activations: Activations | None = None) -> Value:
        """A scalar in the type of the activations."""


def relu2(dialect: Arithmetic, x: Value) -> Value:
    """max(x, 0) squared."""
    positive = dialect.graph.op("Relu", x)
    return dialect.graph.op("Mul", positive, positive)  # type: ignore[no-any-return]


def xielu(dialect: Arithmetic, x: Value, shape: Xielu) -> Value:
    """See `Xielu`. Elu is expm1 below zero, where Exp(x) - 1 would lose what x has near zero."""
    op, number = dialect.graph.op, dialect.number
    above = op("Mul", relu2(dialect, x), number(shape.positive))
    low = op("Elu", op("Min", x, number(shape.eps)), alpha=1.0)
    below = op("Mul", op("Sub", low, x), number(shape.negative))
    curved = op("Where", op("Greater", x, number(0.0)), above, below)
    return dialect.add(curved, op("Mul", x, number(shape.beta)))


def sparse_gates(dialect: Arithmetic, gate: Value, share: float) -> Value:
    """Gates above a quantile of the normal distribution that they have, less it; others are zero.

    The mean and the standard deviation are of one token's gates.
    """
    op = dialect.graph.op
    wide = widened(dialect, gate)
    centered = op("Sub", wide, mean(dialect, wide))
    deviation = op("Sqrt", mean_of_squares(dialect, centered))
    cut = op("Mul", deviation, dialect.number(NormalDist().inv_cdf(share), "fp32"))
    return narrowed(dialect, op("Relu", op("Sub", centered, cut)))


def mean_of_squares(dialect: Arithmetic, x: Value) -> Value:
    """Over the last axis, which stays, with one element."""
    return mean(dialect, dialect.graph.op("Mul", x, x))


def mean(dialect: Arithmetic, x: Value) -> Value:
    """Over the last axis, which stays, with one element."""
    graph = dialect.graph
    if graph.opsets[""] < 18:
        return graph.op("ReduceMean", x, axes=[-1])  # type: ignore[no-any-return]
    axis = graph.constant("axis.last", np.array([-1], dtype=np.int64))
    return graph.op("ReduceMean", x, axis)  # type: ignore[no-any-return]


def widened(dialect: Arithmetic, x: Value) -> Value:
    """Activations in fp32, for sums over many of them."""
    if dialect.activations == "fp32":
        return x
    return dialect.graph.op("Cast", x, to=ir.DataType.FLOAT.value)  # type: ignore[no-any-return]


def narrowed(dialect: Arithmetic, x: Value) -> Value:
    """What was computed of `widened`, in the type of the activations."""
    if dialect.activations == "fp32":
        return x
    return dialect.graph.op("Cast", x, to=DTYPES[dialect.activations].value)  # type: ignore[no-any-return]
