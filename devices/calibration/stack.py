"""A stack of decoder layers with random weights, which calibration times.

The nodes are those of a bundle's graph for ONNX Runtime (norm with residual, packed QKV, fused
attention on an in-place cache, gated feed-forward), without embedding and head.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgelm.errors import MissingPackage
from edgelm.quantize.precision import Fp32, Int4, Int8, KvType, WeightPrecision

_MICROSOFT = "com.microsoft"
_OPSET, _IR_VERSION = 21, 10
HEAD_DIM = 64


class StackShape(NamedTuple):
    """Sizes of a stack; heads have 64 channels, and three query heads share a key head."""

    layers: int
    hidden: int
    ffn: int

    @property
    def heads(self) -> int:
        return self.hidden // HEAD_DIM

    @property
    def kv_heads(self) -> int:
        return max(1, self.heads // 3)

    @property
    def parameters_per_layer(self) -> int:
        """Weights of a layer's matrices."""
        attention = self.hidden * (2 * self.heads + 2 * self.kv_heads) * HEAD_DIM
        return attention + 3 * self.hidden * self.ffn


def build_stack(shape: StackShape, precision: WeightPrecision, kv: KvType) -> bytes:
    """The stack as an ONNX model.

    Raises:
        MissingPackage: onnx, which writes the graph, is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise MissingPackage(
            "calibration needs onnx to write its graphs; pip install 'edgelm[export]'"
        ) from None
    return _Stack(onnx, shape, precision, kv).model().SerializeToString()  # type: ignore[no-any-return]


class _Stack:
    def __init__(
        self, onnx: Any, shape: StackShape, precision: WeightPrecision, kv: KvType
    ) -> None:
        self.onnx = onnx
        self.shape = shape
        self.precision = precision
        self.kv = kv
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.random = np.random.default_rng(0)

    def model(self) -> Any:
        helper, types = self.onnx.helper, self.onnx.TensorProto
        shape, element = self.shape, types.INT8 if self.kv == "int8" else types.FLOAT
        cache = (1, shape.kv_heads, "capacity", HEAD_DIM)
        inputs = [
            helper.make_tensor_value_info("x", types.FLOAT, (1, "T", shape.hidden)),
            helper.make_tensor_value_info("last_position", types.INT32, (1,)),
            helper.make_tensor_value_info("total_length", types.INT32, ()),
            helper.make_tensor_value_info("is_prefill", types.BOOL, ()),
        ]
        outputs = [helper.make_tensor_value_info("y", types.FLOAT, (1, "T", shape.hidden))]
        self.constant("norm", np.ones(shape.hidden, dtype=np.float32))
        self.constant("scale", np.array(0.01, dtype=np.float32))
        self.constant("cos", np.ones((1, HEAD_DIM // 2), dtype=np.float32), rows="positions")
        stream = delta = "x"
        for number in range(shape.layers):
            inputs += [
                helper.make_tensor_value_info(f"past.{number}.{kind}", element, cache)
                for kind in "kv"
            ]
            outputs += [
                helper.make_tensor_value_info(f"present.{number}.{kind}", element, cache)
                for kind in "kv"
            ]
            stream, delta = self.layer(number, stream, delta)
        self.node("Add", [stream, delta], ["y"])
        graph = helper.make_graph(self.nodes, "stack", inputs, outputs, self.weights)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)

    def layer(self, number: int, stream: str, delta: str) -> tuple[str, str]:
        shape, name = self.shape, f"layers.{number}"
        q, kv = shape.heads * HEAD_DIM, shape.kv_heads * HEAD_DIM
        normed, stream = self.add_norm(f"{name}.attention_norm", stream, delta)
        qkv = self.linear(f"{name}.qkv", normed, shape.hidden, q + 2 * kv)
        attended = self.attention(number, qkv)
        delta = self.linear(f"{name}.o", attended, q, shape.hidden)
        normed, stream = self.add_norm(f"{name}.mlp_norm", stream, delta)
        both = self.linear(f"{name}.gate_up", normed, shape.hidden, 2 * shape.ffn)
        gate, up = f"{name}.gate", f"{name}.up"
        self.node("Split", [both], [gate, up], axis=-1, num_outputs=2)
        self.node("QuickGelu", [gate], [f"{gate}.active"], _MICROSOFT, alpha=1.0)
        self.node("Mul", [f"{gate}.active", up], [f"{name}.gated"])
        return stream, self.linear(f"{name}.down", f"{name}.gated", shape.ffn, shape.hidden)

    def add_norm(self, name: str, stream: str, delta: str) -> tuple[str, str]:
        outputs = [name, "", "", f"{name}.stream"]
        kind = "SkipSimplifiedLayerNormalization"
        self.node(kind, [stream, delta, "norm"], outputs, _MICROSOFT, epsilon=1e-6)
        return name, f"{name}.stream"

    def attention(self, number: int, qkv: str) -> str:
        quantized = self.kv == "int8"
        inputs = [qkv, "", "", f"past.{number}.k", f"past.{number}.v"]
        inputs += ["last_position", "total_length", "cos", "cos"]
        inputs += ["", "", "", "scale", "scale"] if quantized else []
        extra: dict[str, Any] = {}
        if quantized:
            extra = {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR"}
            extra["kv_cache_bit_width"] = 8
        outputs = [f"layers.{number}.attention", f"present.{number}.k", f"present.{number}.v"]
        node = self.onnx.helper.make_node(
            "GroupQueryAttention",
            inputs,
            outputs,
            domain=_MICROSOFT,
            num_heads=self.shape.heads,
            kv_num_heads=self.shape.kv_heads,
            do_rotary=1,
            **extra,
        )
        if quantized:
            self.choose(node, outputs)
        else:
            self.nodes.append(node)
        return outputs[0]

    def choose(self, node: Any, outputs: list[str]) -> None:
        """Choose the attention kernel by the number of tokens, as bundles with int8 caches do."""
        helper = self.onnx.helper
        branches = {}
        for name in ("then_branch", "else_branch"):
            inner = [f"{output}.{name}" for output in outputs]
            copy = type(node)()
            copy.CopyFrom(node)
            copy.output[:] = inner
            results = [helper.make_empty_tensor_value_info(output) for output in inner]
            branches[name] = helper.make_graph([copy], name, [], results)
        self.node("If", ["is_prefill"], outputs, **branches)

    def linear(self, name: str, x: str, inputs: int, outputs: int) -> str:
        if isinstance(self.precision, Fp32):
            self.constant(f"{name}.w", self.normal((outputs, inputs)))
            self.node("FusedMatMul", [x, f"{name}.w"], [name], _MICROSOFT, transB=1)
            return name
        assert isinstance(self.precision, Int4 | Int8)
        bits = 4 if isinstance(self.precision, Int4) else 8
        size = self.precision.group_size
        groups = -(-inputs // size)
        self.constant(f"{name}.levels", self.bytes((outputs, groups, size * bits // 8)))
        scales = np.full(outputs * groups, 1e-3, dtype=np.float32)
        self.constant(f"{name}.scales", scales)
        operands = [x, f"{name}.levels", f"{name}.scales"]
        if not self.precision.symmetric:
            self.constant(f"{name}.zeros", self.bytes((outputs * -(-groups * bits // 8),)))
            operands.append(f"{name}.zeros")
        self.node(
            "MatMulNBits",
            operands,
            [name],
            _MICROSOFT,
            N=outputs,
            K=inputs,
            bits=bits,
            block_size=size,
            accuracy_level=4,
        )
        return name

    def node(
        self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> None:
        make = self.onnx.helper.make_node
        self.nodes.append(make(kind, inputs, outputs, domain=domain, **attributes))

    def constant(self, name: str, array: npt.NDArray[Any], rows: str = "") -> None:
        if rows:  # a rotary table: as many equal rows as the longest calibration cache
            array = np.repeat(array, POSITIONS, axis=0)
        self.weights.append(self.onnx.numpy_helper.from_array(array, name))

    def bytes(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        return self.random.integers(0, 256, shape, dtype=np.uint8)

    def normal(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        return self.random.standard_normal(shape, dtype=np.float32) * np.float32(1e-3)


POSITIONS = 4608
