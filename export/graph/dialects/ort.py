"""The `ort` dialect: ONNX Runtime's own ops, fused where its CPU kernels are.

GroupQueryAttention rotates, appends to the cache in place and attends in one node;
MatMulNBits multiplies by packed 4- or 8-bit weights with int8 arithmetic (accuracy level 4:
without it the CPU kernel is 4 to 240 times slower). Scales are stored in fp16; the Cast that
widens them is folded when a session loads.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from edgelm.bundle import CacheContract, GraphContract, TensorContract
from edgelm.bundle.records.adapters import LowRankInput
from edgelm.bundle.roles import output_role
from edgelm.export.graph import activations
from edgelm.export.graph.attention.attention_gate import scale_by_gate
from edgelm.export.graph.attention.ort_attention import MICROSOFT, OrtAttention
from edgelm.export.graph.builder import Graph
from edgelm.export.graph.cut_graph import save_cut
from edgelm.export.graph.dtypes import DTYPES, Activations, Bias, as_precision, write_floats
from edgelm.export.graph.experts.fused_experts import FusedExperts
from edgelm.export.graph.recurrent.gated_delta import FusedGatedDelta
from edgelm.export.graph.recurrent.mamba2 import FusedMamba2
from edgelm.export.graph.recurrent.short_conv import ConvWeights, short_conv
from edgelm.export.graph.residual.per_layer_inputs import per_layer_tokens
from edgelm.export.graph.source_inputs import prepare_inputs
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import DeltaWeights, MambaWeights, Router, Xielu
from edgelm.quantize.grids import Inputs
from edgelm.quantize.precision import Int4, Int8, KvType, Unquantized, WeightPrecision, describe
from edgelm.quantize.rtn import pack, pack_zero_points
from edgelm.spec.groups import EMBEDDING, HEAD, PER_LAYER_EMBEDDING
from edgelm.spec.layers.experts import MixtureOfExperts
from edgelm.spec.layers.mixers import GatedDelta, Mamba2

Value = ir.Value
_TABLE_NAMES = {"embed": "embedding", "embed_per_layer": "per_layer_embedding"}
# Several rows take up to 1.6 times as long without a packed copy of the head: small ones have it.
_MAX_PACKED_HEAD_BYTES = 2**28
_SCATTERING = ("int8", "fp8")  # caches that TensorScatter, of opset 24, writes


class OrtDialect(OrtAttention):
    """Writes a decoder for ONNX Runtime's CPU or CUDA provider into `folder`.

    Args:
        folder: where `model.onnx` and its data file go; None to count bytes only.
        quantizer: of the source's matrices.
        precision: one record for every group of `weights.groups()`.
        kv: type of the cache; `int8` and `fp8` need weights with a `kv_scaling`.
        context: positions that the rotary tables cover.
        activations: type of the residual stream; CUDA's kernels are made for 16 bits, the CPU's
            for fp32.
        adapted: groups whose products adapters may change; fp32 activations only.
        window_rows: rows of windowed layers that do not hold all tokens, by their index; the
            CPU's kernels only.
        batch: whether runs in 16 bits take several sequences, too; in fp32 they do where they can.
        single: whether runs take one sequence even then.
    """

    def __init__(
        self,
        folder: Path | None,
        quantizer: Quantizer,
        precision: Mapping[str, WeightPrecision],
        *,
        kv: KvType,
        context: int,
        activations: Activations = "fp32",
        adapted: Collection[str] = (),
        window_rows: Mapping[int, int] | None = None,
        batch: bool = False,
        single: bool = False,
    ) -> None:
        assert not adapted or activations == "fp32", "adapters are bound in fp32"
        graph = Graph(folder, opsets={"": _opset(kv, activations), MICROSOFT: 1})
        super().__init__(
            graph,
            quantizer.weights,
            kv=kv,
            context=context,
            activations=activations,
            window_rows=window_rows,
            batch=batch,
            single=single,
        )
        self.precision = precision
        self.quantizer = quantizer
        self._tied: dict[str, Value] = {}
        self._adapted = frozenset(adapted)
        self._low_rank: list[LowRankInput] = []

    def embed(self) -> Value:
        tied = self.spec.tie_word_embeddings and self.spec.has_head
        rows, stored = self.look_up(HEAD if tied else EMBEDDING, "embed", self.tokens)
        if tied:
            self._tied = stored
        return rows

    def embed_per_layer(self) -> Value:
        tokens = per_layer_tokens(self.graph, self.spec, self.tokens)
        return self.look_up(PER_LAYER_EMBEDDING, "embed_per_layer", tokens)[0]

    def look_up(self, group: str, name: str, tokens: Value) -> tuple[Value, dict[str, Value]]:
        """The tokens' rows of a table, and what a head that is tied to it can use."""
        precision = self.precision[group]
        rows, columns = self.weights.shape(group)
        if isinstance(precision, Unquantized):
            return self._look_up_unquantized(group, name, tokens)
        precision = _grouped(precision, group)
        if columns % precision.group_size:
            return self._look_up_unquantized(group, name, tokens)[0], {}
        packed = self._packed(group, lambda: self.weights.matrix(group), precision)
        bits = 4 if isinstance(precision, Int4) else 8
        table = _TABLE_NAMES[name]
        data = self.graph.view(f"{table}.rows", packed["levels"], (rows, columns * bits // 8))
        gathered = self.graph.op(
            "GatherBlockQuantized",
            data,
            tokens,
            self._cast_scales(packed["scales"]),
            packed.get("zero_points"),
            domain=MICROSOFT,
            name=name,
            bits=bits,
            block_size=precision.group_size,
            gather_axis=0,
            quantize_axis=1,
        )
        return gathered, packed

    def _look_up_unquantized(
        self, group: str, name: str, tokens: Value
    ) -> tuple[Value, dict[str, Value]]:
        matrix, precision = self.weights.matrix(group), self.precision[group]
        if isinstance(precision, Unquantized):
            matrix = as_precision(matrix, precision)
        table = self._floats(f"{_TABLE_NAMES[name]}.weight", matrix)
        return self.graph.op("Gather", table, tokens, name=name, axis=0), {"weight": table}

    def linear(
        self, x: Value, group: str, matrix: Callable[[], torch.Tensor], bias: torch.Tensor | None
    ) -> Value:
        product = self._product(x, group, matrix, bias)
        return self._with_adapter(x, product, group) if group in self._adapted else product

    def _with_adapter(self, x: Value, product: Value, group: str) -> Value:
        """The product plus what a run's adapter adds to it; nothing without one."""
        outputs, inputs = self.weights.shape(group)
        names = f"{group}.adapter.down", f"{group}.adapter.up"
        nothing = np.zeros((inputs, 0), np.float32), np.zeros((0, 1), np.float32)
        down = self.graph.optional_input(names[0], (inputs, f"{group}.rank"), nothing[0])
        # Without an adapter one zero is added to all outputs: a column costs less than a matrix.
        up = self.graph.optional_input(names[1], (f"{group}.rank", f"{group}.outputs"), nothing[1])
        self._low_rank.append(LowRankInput(group, *names, inputs, outputs))
        return self.add(product, self.graph.op("MatMul", self.graph.op("MatMul", x, down), up))

    def _product(
        self, x: Value, group: str, matrix: Callable[[], torch.Tensor], bias: torch.Tensor | None
    ) -> Value:
        precision = self.precision[group]
        offset = None if bias is None else self._floats(f"{group}.bias", bias)
        if isinstance(precision, Unquantized):
            weight = self._tied.get("weight") if group == HEAD else None
            if weight is None:
                weight = self._floats(f"{group}.weight", as_precision(matrix(), precision))
            large = 4 * self.spec.embedding_parameters > _MAX_PACKED_HEAD_BYTES
            if group == HEAD and large and self.activations == "fp32" and not self._adapted:
                # The copy of a large vocabulary would take gigabytes, and one row is no faster.
                self.graph.keep_unpacked(weight)
            y = self.graph.op("FusedMatMul", x, weight, domain=MICROSOFT, name=group, transB=1)
            return y if offset is None else self.add(y, offset)
        precision = _grouped(precision, group)
        packed = self._tied if group == HEAD and self._tied else None
        if packed is None:
            packed = self._packed(group, matrix, precision)
        features = self.weights.shape(group)
        return self.graph.op(  # type: ignore[no-any-return]
            "MatMulNBits",
            x,
            packed["levels"],
            self._cast_scales(packed["scales"]),
            packed.get("zero_points"),
            None,
            offset,
            domain=MICROSOFT,
            name=group,
            N=features[0],
            K=features[1],
            bits=4 if isinstance(precision, Int4) else 8,
            block_size=precision.group_size,
            accuracy_level=4,
        )

    def norm(self, x: Value, name: str, weight: torch.Tensor, bias: Bias = None) -> Value:
        return self.graph.op(  # type: ignore[no-any-return]
            "SimplifiedLayerNormalization" if bias is None else "LayerNormalization",
            x,
            *self._norm_parameters(name, weight, bias),
            name=name,
            axis=-1,
            epsilon=self.spec.rms_norm_eps,
        )

    def prepare_inputs(self, x: Value, group: str, inputs: Inputs) -> Value:
        """See Dialect."""
        return prepare_inputs(self.graph, x, group, inputs, self.activations)

    def add_norm(
        self, stream: Value, delta: Value, name: str, weight: torch.Tensor, bias: Bias = None
    ) -> tuple[Value, Value]:
        kind = "SimplifiedLayerNormalization" if bias is None else "LayerNormalization"
        normed, _, _, total = self.graph.op(
            f"Skip{kind}",
            stream,
            delta,
            *self._norm_parameters(name, weight, bias),
            domain=MICROSOFT,
            outputs=4,
            name=name,
            epsilon=self.spec.rms_norm_eps,
        )
        return normed, total

    def add(self, x: Value, y: Value) -> Value:
        return self.graph.op("Add", x, y)  # type: ignore[no-any-return]

    def scale(self, x: Value, factor: float) -> Value:
        return self.graph.op("Mul", x, self.number(factor))  # type: ignore[no-any-return]

    def number(self, value: float, activations: Activations | None = None) -> Value:
        """A scalar in the type of the activations, or another."""
        kind = activations or self.activations
        array = np.array(value, dtype=DTYPES[kind].numpy())
        return self.graph.constant(f"{kind}.{value!r}", array)

    def gated_delta(
        self, inputs: Value, index: int, mixer: GatedDelta, weights: DeltaWeights
    ) -> Value:
        writer = FusedGatedDelta(
            self.graph,
            self.cache,
            index,
            mixer,
            epsilon=self.spec.rms_norm_eps,
            activations=self.activations,
        )
        return writer.write(inputs, weights)

    def mamba2(self, inputs: Value, index: int, mixer: Mamba2, weights: MambaWeights) -> Value:
        writer = FusedMamba2(
            self.graph,
            self.cache,
            index,
            mixer,
            epsilon=self.spec.rms_norm_eps,
            activations=self.activations,
        )
        return writer.write(inputs, weights)

    def short_conv(
        self, gates: Value, index: int, kernel: torch.Tensor, bias: torch.Tensor | None
    ) -> Value:
        weights = ConvWeights(index, kernel, bias)
        return short_conv(self.graph, self.cache, gates, weights, self.activations)

    def experts(self, x: Value, index: int, mixture: MixtureOfExperts, router: Router) -> Value:
        writer = FusedExperts(self.graph, self.quantizer, index, mixture, self.activations)
        precision = self.precision[writer.gate_up], self.precision[writer.down]
        return writer.write(x, router, precision)

    def gate_shared(self, shared: Value, x: Value, index: int, weight: torch.Tensor) -> Value:
        logit = self.graph.op(
            "MatMul", x, self._floats(f"layers.{index}.mlp.shared.gate", weight.T)
        )
        return scale_by_gate(self.graph, shared, logit)

    def gated(self, gate_up: Value, size: int, sparsity: float = 0.0) -> Value:
        gate, up = self.graph.op("Split", gate_up, outputs=2, axis=-1, num_outputs=2)
        if sparsity:
            gate = activations.sparse_gates(self, gate, sparsity)
        return self.graph.op("Mul", self.activate(gate, None), up)  # type: ignore[no-any-return]

    def activate(self, x: Value, xielu: Xielu | None) -> Value:
        kind, op = self.spec.hidden_act, self.graph.op
        if xielu is not None:
            return activations.xielu(self, x, xielu)
        if kind == "relu2":
            return activations.relu2(self, x)
        if kind == "silu":
            return op("QuickGelu", x, domain=MICROSOFT, alpha=1.0)  # type: ignore[no-any-return]
        fused = {"gelu_tanh": "FastGelu", "gelu": "Gelu"}[kind]
        return op(fused, x, domain=MICROSOFT)  # type: ignore[no-any-return]

    def select_positions(self, x: Value) -> Value:
        return self.graph.op("Gather", x, self.logits_positions, axis=1)  # type: ignore[no-any-return]

    def finish(self, logits: Value) -> None:
        if cap := self.spec.logits_softcap:
            logits = self.scale(self.graph.op("Tanh", self.scale(logits, 1 / cap)), cap)
        if self.activations != "fp32":
            logits = self.graph.op("Cast", logits, to=ir.DataType.FLOAT.value)
        name, width = output_role(self.spec)
        self.graph.output(logits, name, ir.DataType.FLOAT, (self.batch, "P", width))

    def save(self) -> GraphContract:
        """Write the graph and describe it."""
        saved = save_cut(self.graph)
        output, width = output_role(self.spec)
        return GraphContract(
            file=saved.file,
            data=self.graph.data_name,
            dialect="ort",
            opsets={domain or "ai.onnx": version for domain, version in self.graph.opsets.items()},
            inputs={
                "tokens": TensorContract("tokens", "int64", (self.batch, "T")),
                "past_length": TensorContract("past_length", "int64", (self.batch,)),
                "last_position": TensorContract("last_position", "int32", (self.batch,)),
                "total_length": TensorContract("total_length", "int32", ()),
                "logits_positions": TensorContract("logits_positions", "int64", ("P",)),
            },
            outputs={output: TensorContract(output, "float32", (self.batch, "P", width))},
            cache=CacheContract(
                dtype=self.stored,
                num_key_value_heads=self.spec.num_key_value_heads,
                head_dim=self.spec.head_dim,
                layers=tuple(self.cache.layers),
                states=tuple(self.cache.states),
            ),
            low_rank=tuple(self._low_rank),
            segments=saved.segments,
            links=saved.links,
        )

    def _packed(
        self, group: str, matrix: Callable[[], torch.Tensor], precision: Int4 | Int8
    ) -> dict[str, Value]:
        quantized = self.quantizer.quantize(group, matrix, precision)
        packed = {
            "levels": self.graph.weight(f"{group}.levels", pack(quantized).numpy()),
            "scales": self.graph.weight(f"{group}.scales", quantized.scales.numpy()),
        }
        zeros = pack_zero_points(quantized)
        if zeros is not None:
            packed["zero_points"] = self.graph.weight(f"{group}.zero_points", zeros.numpy())
        return packed

    def _cast_scales(self, scales: Value) -> Value:
        """Scales, stored in fp16 or fp32, in the type of the activations."""
        if scales.dtype == DTYPES[self.activations]:
            return scales
        return self.graph.op("Cast", scales, to=DTYPES[self.activations].value)  # type: ignore[no-any-return]

    def _norm_parameters(self, name: str, weight: torch.Tensor, bias: Bias) -> list[Value]:
        given = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        return [self._floats(f"{name}.{kind}", tensor) for kind, tensor in given.items()]

    def _floats(self, name: str, tensor: torch.Tensor) -> Value:
        """A tensor in the type of the activations."""
        return write_floats(self.graph, name, tensor, self.activations)


def _grouped(precision: WeightPrecision, group: str) -> Int4 | Int8:
    # edgelm.devices.kernels lets nothing else through.
    assert isinstance(precision, Int4 | Int8), f"{group}: {describe(precision)}"
    assert precision.group_size, f"{group}: {describe(precision)}"
    return precision


def _opset(kv: KvType, activations: Activations) -> int:
    """24 where needed; a graph of 23 also runs on ONNX Runtime 1.23, the last for Python 3.10."""
    return 24 if kv in _SCATTERING or activations != "fp32" else 23
