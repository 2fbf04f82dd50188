"""A mixture of experts in one operator of ONNX Runtime: MoE, or QMoE over 4- or 8-bit experts.

Their CPU kernels take gate and up as alternating rows of one matrix, and one width and one block
size for both matrices of a layer. Accuracy level 4 multiplies with int8 arithmetic, as MatMulNBits
does.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from edgelm.checkpoint.quantized.fp4 import MXFP4_BLOCK
from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import DTYPES, Activations, as_precision, write_floats
from edgelm.export.graph.experts.routing import RoutingWriter
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Router
from edgelm.quantize.precision import Int4, Int8, Mxfp4, Unquantized, WeightPrecision, describe
from edgelm.quantize.rtn import pack, pack_zero_points
from edgelm.spec.layers.experts import MixtureOfExperts

Value = ir.Value
_MICROSOFT = "com.microsoft"


class FusedExperts:
    """Writes the experts of one layer.

    Args:
        graph: the graph that the nodes are added to.
        quantizer: of the source's matrices.
        layer: its number.
        mixture: the experts.
        activations: type of what they read and write.
    """

    def __init__(
        self,
        graph: Graph,
        quantizer: Quantizer,
        layer: int,
        mixture: MixtureOfExperts,
        activations: Activations,
    ) -> None:
        self.graph = graph
        self.quantizer = quantizer
        self.weights = quantizer.weights
        self.layer = layer
        self.mixture = mixture
        self.activations = activations
        self.gate_up = f"layers.{layer}.mlp.experts.gate_up"
        self.down = f"layers.{layer}.mlp.experts.down"

    def write(
        self, x: Value, router: Router, precision: tuple[WeightPrecision, WeightPrecision]
    ) -> Value:
        """[B, T, H] -> [B, T, H]; `precision` is that of both groups."""
        writer = RoutingWriter(self.graph, self.layer, self.mixture, self.activations)
        routing = writer.route(x, router)
        attributes = self._attributes() | {"normalize_routing_weights": int(routing.normalized)}
        first, second = precision
        if isinstance(first, Int4 | Int8):
            # edgelm.export.precision.legalize lets nothing else through.
            assert isinstance(second, Int4 | Int8)
            assert (type(first), first.group_size) == (type(second), second.group_size)
            mixed = self._quantized(x, routing.logits, first, second, attributes)
        elif isinstance(first, Mxfp4):
            mixed = self._mxfp4(x, routing.logits, attributes)
        else:
            mixed = self._unquantized(x, routing.logits, precision, attributes)
        if routing.factor is None:
            return mixed
        return self.graph.op("Mul", mixed, routing.factor)  # type: ignore[no-any-return]

    def _quantized(
        self,
        x: Value,
        logits: Value,
        first: Int4 | Int8,
        second: Int4 | Int8,
        attributes: dict[str, Any],
    ) -> Value:
        one, two = self._packed(self.gate_up, first), self._packed(self.down, second)
        return self.graph.op(  # type: ignore[no-any-return]
            "QMoE",
            x,
            logits,
            one["levels"],
            self._cast_scales(one["scales"]),
            self._bias(self.gate_up),
            two["levels"],
            self._cast_scales(two["scales"]),
            self._bias(self.down),
            None,
            None,
            None,
            *((one.get("zero_points"), two.get("zero_points")) if "zero_points" in one else ()),
            expert_weight_bits=4 if isinstance(first, Int4) else 8,
            block_size=first.group_size,
            accuracy_level=4,
            weights_prepacked=0,
            **attributes,
        )

    def _mxfp4(self, x: Value, logits: Value, attributes: dict[str, Any]) -> Value:
        one, two = self._microscaled(self.gate_up), self._microscaled(self.down)
        ones = np.ones(self.mixture.experts, dtype=np.float32)
        scale = self.graph.constant("experts.scale", ones)
        return self.graph.op(  # type: ignore[no-any-return]
            "QMoE",
            x,
            logits,
            *(*one, self._bias(self.gate_up)),
            *(*two, self._bias(self.down)),
            *[None] * 7,
            *(scale, scale),
            quant_type="fp4",
            block_size=MXFP4_BLOCK,
            weights_prepacked=1,  # codes in the order of [experts, outputs, inputs]
            **attributes,
        )

    def _microscaled(self, group: str) -> tuple[Value, Value]:
        """Codes and scales of a group's experts, as the source stores them."""
        codes, exponents = self.quantizer.mxfp4(group)
        kind = ir.DataType.FLOAT8E8M0
        return (
            self.graph.weight(f"{group}.levels", codes.numpy()),
            self.graph.weight(f"{group}.scales", exponents.numpy(), kind),
        )

    def _unquantized(
        self,
        x: Value,
        logits: Value,
        precision: tuple[WeightPrecision, WeightPrecision],
        attributes: dict[str, Any],
    ) -> Value:
        return self.graph.op(  # type: ignore[no-any-return]
            "MoE",
            x,
            logits,
            self._floats(self.gate_up, precision[0]),
            self._bias(self.gate_up),
            self._floats(self.down, precision[1]),
            self._bias(self.down),
            **attributes,
        )

    def _attributes(self) -> dict[str, Any]:
        mixture = self.mixture
        return {
            "domain": _MICROSOFT,
            "name": f"layers.{self.layer}.mlp.experts",
            "k": mixture.top_k,
            "activation_type": "swiglu",
            "swiglu_fusion": 1,  # gate and up alternate
            "activation_alpha": mixture.alpha,
            "activation_beta": mixture.beta,
            "swiglu_limit": mixture.limit,
        }

    def _floats(self, group: str, precision: WeightPrecision) -> Value:
        assert isinstance(precision, Unquantized), f"{group}: {describe(precision)}"
        stack = self.weights.matrix(group).unflatten(0, (self.mixture.experts, -1))
        rounded = as_precision(stack, precision)
        return write_floats(self.graph, f"{group}.weight", rounded, self.activations)

    def _bias(self, group: str) -> Value | None:
        bias = self.weights.bias(group)
        if bias is None:
            return None
        stack = bias.unflatten(0, (self.mixture.experts, -1))
        return write_floats(self.graph, f"{group}.bias", stack, self.activations)

    def _packed(self, group: str, precision: Int4 | Int8) -> dict[str, Value]:
        quantized = self.quantizer.quantize(group, lambda: self.weights.matrix(group), precision)
        arrays = {"levels": pack(quantized).flatten(1), "scales": quantized.scales}
        if (zeros := pack_zero_points(quantized)) is not None:
            arrays["zero_points"] = zeros
        return {
            what: self.graph.weight(
                f"{group}.{what}", array.unflatten(0, (self.mixture.experts, -1)).numpy()
            )
            for what, array in arrays.items()
        }

    def _cast_scales(self, scales: Value) -> Value:
        if self.activations == "fp16":
            return scales
        return self.graph.op("Cast", scales, to=DTYPES[self.activations].value)  # type: ignore[no-any-return]
