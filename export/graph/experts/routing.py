"""Which experts a token runs, and how much each counts."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import DTYPES, Activations, write_floats
from edgelm.export.quantize.weights import Router
from edgelm.spec.layers.experts import MixtureOfExperts

Value = ir.Value
_NOT_CHOSEN = -1e4  # logit of an expert that is not chosen; fp16 holds it
_SMALLEST = 1e-7  # score whose logarithm stands for that of 0, likewise


class Routing(NamedTuple):
    """For an operator that chooses the `top_k` largest of `logits` [B T, experts] itself.

    It weighs them by their softmax, over all experts or, if `normalized`, over those chosen.
    `factor` [B, T, 1], if any, multiplies its output.
    """

    logits: Value
    normalized: bool
    factor: Value | None = None


class RoutingWriter:
    """Writes the router of one layer.

    Args:
        graph: the graph that the nodes are added to.
        layer: its number, for names.
        mixture: the experts.
        activations: type of the router's weights and its results.
    """

    def __init__(
        self, graph: Graph, layer: int, mixture: MixtureOfExperts, activations: Activations
    ) -> None:
        self.graph = graph
        self.mixture = mixture
        self.activations = activations
        self.name = f"layers.{layer}.mlp.router"

    def logits(self, x: Value, router: Router) -> Value:
        """[B, T, hidden] -> [B, T, experts]."""
        op = self.graph.op
        weight = self._floats("weight", router.weight.T)
        logits = op("MatMul", x, weight, name=self.name)
        if router.bias is None:
            return logits  # type: ignore[no-any-return]
        return op("Add", logits, self._floats("bias", router.bias))  # type: ignore[no-any-return]

    def route(self, x: Value, router: Router) -> Routing:
        """Routing of [B, T, hidden] by an operator that only knows softmax.

        Other rules become logits whose softmax over the chosen experts is right: the logarithms of
        their scores, and far less for all others.
        """
        mixture, op = self.mixture, self.graph.op
        logits = self.logits(x, router)
        plain = mixture.scores == "softmax" and mixture.scaling == 1 and not mixture.epsilon
        if plain and router.selection_bias is None:
            return Routing(self._rows(logits), mixture.normalized)
        chosen, scores = self._choose(logits, router)
        shape = op("Shape", logits)
        none = self.graph.constant("router.none", self._array(_NOT_CHOSEN).reshape(1))
        least = op("Max", scores, self.graph.constant("router.least", self._array(_SMALLEST)))
        spread = op("Expand", none, shape)
        spread = op("ScatterElements", spread, chosen, op("Log", least), axis=-1)
        return Routing(self._rows(spread), True, self._factor(scores))

    def _rows(self, logits: Value) -> Value:
        """[B, T, experts] -> [B T, experts]."""
        return self.graph.reshape(logits, [-1, self.mixture.experts])

    def _choose(self, logits: Value, router: Router) -> tuple[Value, Value]:
        """Indices and scores of the chosen experts, both [B, T, top_k]."""
        op = self.graph.op
        softmax = self.mixture.scores == "softmax"
        scores = op("Softmax", logits, axis=-1) if softmax else op("Sigmoid", logits)
        ranked = scores
        if router.selection_bias is not None:
            ranked = op("Add", scores, self._floats("selection_bias", router.selection_bias))
        count = np.array([self.mixture.top_k], dtype=np.int64)
        top_k = self.graph.constant(f"router.top_{self.mixture.top_k}", count)
        _, chosen = op("TopK", ranked, top_k, outputs=2, axis=-1)
        return chosen, op("GatherElements", scores, chosen, axis=-1)

    def _factor(self, scores: Value) -> Value:
        """Sum of the chosen experts' weights [B, T, 1]."""
        op, mixture = self.graph.op, self.mixture
        axis = self.graph.constant("router.axis", np.array([-1], dtype=np.int64))
        total = op("ReduceSum", scores, axis, keepdims=1)
        if mixture.normalized:
            epsilon = self.graph.constant("router.epsilon", self._array(mixture.epsilon))
            total = op("Div", total, op("Add", total, epsilon))
        scaling = self.graph.constant("router.scaling", self._array(mixture.scaling))
        return op("Mul", total, scaling)  # type: ignore[no-any-return]

    def _array(self, value: float) -> npt.NDArray[Any]:
        return np.array(value, dtype=DTYPES[self.activations].numpy())

    def _floats(self, what: str, tensor: torch.Tensor) -> Value:
        return write_floats(self.graph, f"{self.name}.{what}", tensor, self.activations)
