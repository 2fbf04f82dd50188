"""Several residual streams (edgelm.spec.layers.altup), in ops that every engine has.

The streams are side by side, [1, T, streams, H]. Sums of them are products with small matrices,
one for each token.
"""

from typing import Protocol

import onnx_ir as ir
import torch

from edgelm.export.graph.activations import Arithmetic, mean_of_squares, narrowed, widened
from edgelm.export.graph.dtypes import write_floats
from edgelm.export.quantize.weights import Weights
from edgelm.spec.layers.altup import MIN_SQUARE, AltUp

Value = ir.Value
_OTHERS = "altup.others"
_ROW, _COLUMN = (0, 0, 1, -1), (0, 0, -1, 1)


class _Dialect(Arithmetic, Protocol):
    def norm(self, x: Value, name: str, weight: torch.Tensor) -> Value: ...


class Streams:
    """Writes what a decoder does to its streams."""

    def __init__(self, dialect: _Dialect, weights: Weights, altup: AltUp) -> None:
        self.dialect = dialect
        self.graph = dialect.graph
        self.weights = weights
        self.altup = altup
        self._written: dict[str, Value] = {}

    def enter(self, hidden: Value, projected: Value) -> Value:
        """The first streams, of the embedding [1, T, H] and its projections [1, T, n * H]."""
        size = self.weights.checkpoint.spec.hidden_size
        first = self.graph.reshape(hidden, (0, 0, 1, size))
        others = self.graph.reshape(projected, (0, 0, self.altup.streams - 1, size))
        matched = self._as_large_as(others, first)
        return self.graph.op("Concat", first, matched, axis=2)  # type: ignore[no-any-return]

    def predict(self, streams: Value, index: int) -> Value:
        """The streams that a layer expects: all of them, plus sums of all of them."""
        count = self.altup.streams
        router = self._router(self.stream(streams, self.altup.active), index, "predict")
        flat = self._product(router, f"layers.{index}.altup.prediction_coefs")
        factors = self.graph.reshape(flat, (0, 0, count, count))
        return self.dialect.add(self.graph.op("MatMul", factors, streams), streams)

    def correct(self, predicted: Value, computed: Value, index: int) -> Value:
        """The predicted streams, each plus a part of what was computed beyond the active one."""
        router = self._router(computed, index, "correct")
        name = f"layers.{index}.altup.correction_coefs"
        parts = self.dialect.add(self._product(router, name), self.dialect.number(1.0))
        change = self.graph.op("Sub", computed, self.stream(predicted, self.altup.active))
        change, parts = (self.graph.reshape(x, s) for x, s in ((change, _ROW), (parts, _COLUMN)))
        return self.dialect.add(self.graph.op("Mul", change, parts), predicted)

    def output(self, corrected: Value, index: int) -> Value:
        """The active stream, as a layer's own inputs meet it."""
        active = self.stream(corrected, self.altup.active)
        if not self.altup.scales_output:
            return active
        name = f"layers.{index}.altup.correct_output_scale"
        return self.graph.op("Mul", active, self._floats(name))  # type: ignore[no-any-return]

    def add_to_others(self, streams: Value, delta: Value) -> Value:
        """Add to every stream but the first, whichever is active."""
        if _OTHERS not in self._written:
            others = torch.ones(self.altup.streams, 1)
            others[0] = 0.0
            mask = write_floats(self.graph, _OTHERS, others, self.dialect.activations)
            self._written[_OTHERS] = mask
        wide = self.graph.op("Mul", self.graph.reshape(delta, _ROW), self._written[_OTHERS])
        return self.dialect.add(streams, wide)

    def stream(self, streams: Value, number: int) -> Value:
        """One stream, [1, T, H]."""
        return self.graph.op("Gather", streams, self.graph.index(number), axis=2)  # type: ignore[no-any-return]

    def exit(self, first: Value, projected: list[Value]) -> Value:
        """The mean of the first stream and of projections of the others, as large as the first."""
        total = first
        for one in projected:
            total = self.dialect.add(total, self._as_large_as(one, first))
        return self.dialect.scale(total, 1 / self.altup.streams)

    def _router(self, x: Value, index: int, use: str) -> Value:
        """The layer's router on a stream [1, T, H] -> [1, T, streams]."""
        layer = f"layers.{index}.altup"
        size = self.weights.checkpoint.spec.hidden_size
        weight = self.weights.norm(f"{layer}.router_norm") / size
        normed = self.dialect.norm(x, f"{layer}.{use}_norm", weight)
        return self.graph.op("Tanh", self._product(normed, f"{layer}.modality_router"))  # type: ignore[no-any-return]

    def _product(self, x: Value, name: str) -> Value:
        """With one of the small matrices, which keep the type of the activations."""
        matrix = self._floats(f"{name}.weight", transposed=True)
        return self.graph.op("MatMul", x, matrix)  # type: ignore[no-any-return]

    def _as_large_as(self, x: Value, target: Value) -> Value:
        """Rows scaled to the root mean square of the target's."""
        dialect, op = self.dialect, self.graph.op
        wide, aim = (widened(dialect, one) for one in (x, target))
        square = op("Max", mean_of_squares(dialect, wide), dialect.number(MIN_SQUARE, "fp32"))
        factor = op("Sqrt", op("Div", mean_of_squares(dialect, aim), square))
        return narrowed(dialect, op("Mul", wide, factor))

    def _floats(self, name: str, *, transposed: bool = False) -> Value:
        """A tensor of the checkpoint; one value however often it is used."""
        if name not in self._written:
            tensor = self.weights.tensor(f"model.{name}")
            tensor = tensor.T if transposed else tensor
            self._written[name] = write_floats(self.graph, name, tensor, self.dialect.activations)
        return self._written[name]
