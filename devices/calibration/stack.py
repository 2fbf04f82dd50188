"""A stack of decoder layers, or of halves of layers, with random weights, which is timed.

The nodes are those of a bundle's graph for ONNX Runtime (norm with residual, packed QKV, fused
attention on an in-place cache, feed-forward), without embedding. Activations are QuickGelu, which
SiLU is in a bundle; biases are left out.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgelm.devices.kernels import KERNELS
from edgelm.errors import MissingPackage
from edgelm.quantize.precision import Fp32, Int4, Int8, KvType, WeightPrecision

_MICROSOFT = "com.microsoft"
_OPSET, _IR_VERSION = 21, 10
_KERNELS = KERNELS["onnxruntime"]
HEAD_DIM = 64
POSITIONS = 4608  # of the longest cache that calibration times


class StackShape(NamedTuple):
    """Sizes of a stack's layers; those that are 0 are left out.

    `ffn` is the intermediate size of an MLP, `gated` whether it has a gate. `heads` and `kv_heads`
    are those of attention over the last `window` keys, with `normed` after norms of queries and
    keys. `outputs` are those of a matrix that is no layer's: a head.
    """

    layers: int
    hidden: int
    ffn: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = HEAD_DIM
    window: int | None = None
    gated: bool = True
    normed: bool = False
    outputs: int = 0

    @classmethod
    def of_widths(cls, layers: int, hidden: int, ffn: int) -> "StackShape":
        """Whole layers; three query heads share a key head."""
        heads = hidden // HEAD_DIM
        return cls(layers, hidden, ffn, heads, max(1, heads // 3))

    @property
    def parameters_per_layer(self) -> int:
        """Weights of a layer's matrices."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_dim
        return self.hidden * (attention + (2 + self.gated) * self.ffn + self.outputs)


def build_stack(
    shape: StackShape, precision: str, kv: KvType, *, positions: int = POSITIONS
) -> bytes:
    """The stack as an ONNX model.

    Args:
        shape: its sizes.
        precision: of its matrices, by name; groups are those of ONNX Runtime's kernels.
        kv: type of its cache.
        positions: tokens that the cache holds at most.

    Raises:
        MissingPackage: onnx, which writes the graph, is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise MissingPackage(
            "timing layers needs onnx to write their graphs; pip install 'edgelm[export]'"
        ) from None
    return _Stack(onnx, shape, precision, kv, positions).model().SerializeToString()  # type: ignore[no-any-return]


class _Stack:
    def __init__(
        self, onnx: Any, shape: StackShape, precision: str, kv: KvType, positions: int
    ) -> None:
        self.onnx = onnx
        self.shape = shape
        self.precision = precision
        self.kv = kv
        self.positions = positions
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.random = np.random.default_rng(0)

    def model(self) -> Any:
        helper, types = self.onnx.helper, self.onnx.TensorProto
        shape, element = self.shape, types.INT8 if self.kv == "int8" else types.FLOAT
        cache = (1, shape.kv_heads, "capacity", shape.head_dim)
        inputs = [
            helper.make_tensor_value_info("x", types.FLOAT, (1, "T", shape.hidden)),
            helper.make_tensor_value_info("last_position", types.INT32, (1,)),
            helper.make_tensor_value_info("total_length", types.INT32, ()),
            helper.make_tensor_value_info("is_prefill", types.BOOL, ()),
        ]
        outputs = [helper.make_tensor_value_info("y", types.FLOAT, (1, "T", shape.hidden))]
        self.constant("norm", np.ones(shape.hidden, dtype=np.float32))
        self.constant("scale", np.array(0.01, dtype=np.float32))
        table = (self.positions, shape.head_dim // 2)
        self.constant("cos", np.ones(table, dtype=np.float32))
        stream = delta = "x"
        for number in range(shape.layers):
            if not shape.heads:
                stream, delta = self.layer(number, stream, delta)
                continue
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
        if shape.heads:
            q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
            normed, stream = self.add_norm(f"{name}.attention_norm", stream, delta)
            qkv = self.linear(f"{name}.qkv", normed, shape.hidden, q + 2 * kv)
            attended = self.attention(number, qkv)
            delta = self.linear(f"{name}.o", attended, q, shape.hidden)
        if shape.ffn:
            normed, stream = self.add_norm(f"{name}.mlp_norm", stream, delta)
            delta = self.mlp(name, normed)
        if shape.outputs:
            normed, stream = self.add_norm(f"{name}.norm", stream, delta)
            logits = self.linear(f"{name}.head", normed, shape.hidden, shape.outputs)
            # One of them, in the next one's place: a stack's matrices run one after another.
            self.node("ReduceMax", [logits], [f"{name}.largest"], keepdims=1)
            self.node("Mul", [normed, f"{name}.largest"], [f"{name}.delta"])
            delta = f"{name}.delta"
        return stream, delta

    def mlp(self, name: str, normed: str) -> str:
        shape, gate, up = self.shape, f"{name}.gate", f"{name}.up"
        if shape.gated:
            both = self.linear(f"{name}.gate_up", normed, shape.hidden, 2 * shape.ffn)
            self.node("Split", [both], [gate, up], axis=-1, num_outputs=2)
            self.node("QuickGelu", [gate], [f"{gate}.active"], _MICROSOFT, alpha=1.0)
            self.node("Mul", [f"{gate}.active", up], [f"{name}.inner"])
        else:
            self.linear(up, normed, shape.hidden, shape.ffn)
            self.node("QuickGelu", [up], [f"{name}.inner"], _MICROSOFT, alpha=1.0)
        return self.linear(f"{name}.down", f"{name}.inner", shape.ffn, shape.hidden)

    def add_norm(self, name: str, stream: str, delta: str) -> tuple[str, str]:
        outputs = [name, "", "", f"{name}.stream"]
        kind = "SkipSimplifiedLayerNormalization"
        self.node(kind, [stream, delta, "norm"], outputs, _MICROSOFT, epsilon=1e-6)
        return name, f"{name}.stream"

    def attention(self, number: int, qkv: str) -> str:
        quantized = self.kv == "int8"
        operands = self.normed(number, qkv) if self.shape.normed else [qkv, "", ""]
        inputs = [*operands, f"past.{number}.k", f"past.{number}.v"]
        inputs += ["last_position", "total_length", "cos", "cos"]
        inputs += ["", "", "", "scale", "scale"] if quantized else []
        window = self.shape.window
        extra: dict[str, Any] = {} if window is None else {"local_window_size": window}
        if quantized:
            extra |= {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR"}
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

    def normed(self, number: int, qkv: str) -> list[str]:
        """Queries and keys of each head normed, and values."""
        shape, found = self.shape, [f"layers.{number}.{part}" for part in "qkv"]
        widths = [shape.heads * shape.head_dim, *[shape.kv_heads * shape.head_dim] * 2]
        self.shared("qkv_sizes", np.array(widths, dtype=np.int64))
        self.node("Split", [qkv, "qkv_sizes"], found, axis=-1)
        self.shared("head_norm", np.ones(shape.head_dim, dtype=np.float32))
        self.shared("by_head", np.array([1, -1, shape.head_dim], dtype=np.int64))
        for index, width in enumerate(widths[:2]):
            part = found[index]
            self.shared(f"flat.{width}", np.array([1, -1, width], dtype=np.int64))
            self.node("Reshape", [part, "by_head"], [f"{part}.heads"])
            norm = [f"{part}.heads", "head_norm"]
            self.node("SimplifiedLayerNormalization", norm, [f"{part}.normed"], epsilon=1e-6)
            self.node("Reshape", [f"{part}.normed", f"flat.{width}"], [f"{part}.flat"])
            found[index] = f"{part}.flat"
        return found

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
        precision = self.precision_of(name, inputs)
        if isinstance(precision, Fp32):
            self.constant(f"{name}.w", self.normal((outputs, inputs)))
            self.node("FusedMatMul", [x, f"{name}.w"], [name], _MICROSOFT, transB=1)
            return name
        assert isinstance(precision, Int4 | Int8)
        bits = 4 if isinstance(precision, Int4) else 8
        size = precision.group_size
        groups = -(-inputs // size)
        self.constant(f"{name}.levels", self.bytes((outputs, groups, size * bits // 8)))
        scales = np.full(outputs * groups, 1e-3, dtype=np.float32)
        self.constant(f"{name}.scales", scales)
        operands = [x, f"{name}.levels", f"{name}.scales"]
        if not precision.symmetric:
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

    def precision_of(self, name: str, inputs: int) -> WeightPrecision:
        """Of a matrix with `inputs` columns; a head's table has groups that divide them."""
        precision = _KERNELS.precision(self.precision, inputs)
        if name.endswith(".head") and isinstance(precision, Int4 | Int8):
            return _KERNELS.for_table(precision, inputs)
        return precision

    def node(
        self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> None:
        make = self.onnx.helper.make_node
        self.nodes.append(make(kind, inputs, outputs, domain=domain, **attributes))

    def shared(self, name: str, array: npt.NDArray[Any]) -> None:
        """A constant that layers have in common."""
        if all(one.name != name for one in self.weights):
            self.constant(name, array)

    def constant(self, name: str, array: npt.NDArray[Any]) -> None:
        self.weights.append(self.onnx.numpy_helper.from_array(array, name))

    def bytes(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        return self.random.integers(0, 256, shape, dtype=np.uint8)

    def normal(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        return self.random.standard_normal(shape, dtype=np.float32) * np.float32(1e-3)
