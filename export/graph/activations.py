"""Activations of MLPs without a gate, in ops that every engine has."""

from typing import Protocol

import onnx_ir as ir

from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import Activations
from edgelm.export.quantize.weights import Xielu

Value = ir.Value


class Arithmetic(Protocol):
    """What is needed of a dialect."""

    graph: Graph

    def add(self, x: Value, y: Value) -> Value:
        """Elementwise sum."""

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
