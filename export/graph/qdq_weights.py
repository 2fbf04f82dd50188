"""Matrices of the decoder as DequantizeLinear and MatMul, for engines that fuse the two.

Stored [in_features, out_features], the way TensorRT's kernels read them. TensorRT's quantization
is symmetric: a zero point other than the middle is refused.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import DTYPES, Activations, as_precision, pack_nibbles, write_floats
from edgelm.export.graph.packed_table import fits_words, gather_rows
from edgelm.export.quantize.float_formats import FP8_MAX
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.quantize.precision import (
    NVFP4_BLOCK,
    W8A8,
    Fp8,
    Int4,
    Int8,
    Nvfp4,
    Unquantized,
    WeightPrecision,
    describe,
)
from edgelm.quantize.rtn import Quantized

Value = ir.Value


class QdqWeights:
    """Writes matrices into a graph.

    Args:
        graph: the graph that the nodes are added to.
        quantizer: of the source's matrices, with positive scales.
        activations: type of the products' inputs and outputs.
        dequantized: store what DequantizeLinear would give, in place of quantized weights. Inputs
            are still quantized.
    """

    def __init__(
        self,
        graph: Graph,
        quantizer: Quantizer,
        activations: Activations,
        *,
        dequantized: bool,
    ) -> None:
        self.graph = graph
        self.weights = quantizer.weights
        self.quantizer = quantizer
        self.activations = activations
        self.dequantized = dequantized

    def multiply(
        self, x: Value, group: str, matrix: Callable[[], torch.Tensor], precision: WeightPrecision
    ) -> Value:
        """`x @ matrix.T`, [1, T, in] -> [1, T, out]."""
        if isinstance(precision, Int4 | Int8):
            stored = self._integers(group, matrix, precision)
        elif isinstance(precision, W8A8):
            x = self._int8_inputs(x, group)
            stored = self._integers(group, matrix, Int8(group_size=0))
        elif isinstance(precision, Fp8):
            x = self._fp8_inputs(x, group)
            stored = self._fp8(group, matrix)
        elif isinstance(precision, Nvfp4):
            stored = self._nvfp4(group, matrix)
        else:
            assert isinstance(precision, Unquantized), f"{group}: {describe(precision)}"
            stored = self.plain(f"{group}.weight", matrix().T, precision)
        return self.graph.op("MatMul", x, stored, name=group)  # type: ignore[no-any-return]

    def gather(self, tokens: Value, group: str, precision: WeightPrecision) -> Value:
        """The tokens' rows of a table [1, T, columns], which is stored as quantized."""
        if not isinstance(precision, Int4 | Int8):
            assert isinstance(precision, Unquantized), f"{group}: {describe(precision)}"
            table = self.plain(f"{group}.weight", self.weights.matrix(group), precision)
            return self.graph.op("Gather", table, tokens, name=group, axis=0)  # type: ignore[no-any-return]
        columns = self.weights.columns(group)
        if not precision.group_size:
            precision = Int8(group_size=columns)
        quantized = self.quantizer.quantize(group, lambda: self.weights.matrix(group), precision)
        if self.dequantized or not fits_words(columns, quantized.bits):
            table = self.floats(f"{group}.weight", quantized.dequantize(columns))
            return self.graph.op("Gather", table, tokens, name=group, axis=0)  # type: ignore[no-any-return]
        return gather_rows(self.graph, group, quantized, columns, tokens, self.activations)

    def plain(self, name: str, tensor: torch.Tensor, precision: Unquantized) -> Value:
        """A tensor in the type of the activations, first rounded to its own precision."""
        return self.floats(name, as_precision(tensor, precision))

    def floats(self, name: str, tensor: torch.Tensor) -> Value:
        """A tensor in the type of the activations."""
        return write_floats(self.graph, name, tensor, self.activations)

    def _integers(
        self, group: str, matrix: Callable[[], torch.Tensor], precision: Int4 | Int8
    ) -> Value:
        columns = self.weights.columns(group)
        if not precision.group_size:
            precision = Int8(group_size=columns)
        # edgelm.devices.kernels lets nothing else through.
        assert precision.symmetric, f"{group}: {describe(precision)}"
        assert columns % precision.group_size == 0, f"{group}: {columns}, {describe(precision)}"
        quantized = self.quantizer.quantize(group, matrix, precision)
        if self.dequantized:
            return self.floats(f"{group}.weight", quantized.dequantize(columns).T)
        return self._blocks(group, quantized, columns)

    def _blocks(self, group: str, quantized: Quantized, columns: int) -> Value:
        levels = quantized.levels.flatten(1)[:, :columns].T - quantized.middle  # wraps: uint8
        shape = (columns, levels.shape[1])
        if quantized.bits == 4:
            data = self.graph.weight(
                f"{group}.levels", pack_nibbles(levels & 0xF), ir.DataType.INT4, shape
            )
        else:
            signed = levels.contiguous().view(torch.int8).numpy()
            data = self.graph.weight(f"{group}.levels", signed)
        if quantized.group_size == columns:
            return self._by_channel(group, data, quantized.scales[:, 0])
        scales = self.floats(f"{group}.scales", quantized.scales.T)
        return self.graph.op(  # type: ignore[no-any-return]
            "DequantizeLinear", data, scales, axis=0, block_size=quantized.group_size
        )

    def _by_channel(self, group: str, data: Value, scales: torch.Tensor) -> Value:
        """Levels [in, out] times one scale per output channel."""
        if self.graph.opsets[""] >= 19:
            stored = self.floats(f"{group}.scales", scales)
            return self.graph.op("DequantizeLinear", data, stored, axis=1)  # type: ignore[no-any-return]
        # Before opset 19 scales and results are fp32.
        wide = self.graph.weight(f"{group}.scales", scales.float().numpy())
        matrix = self.graph.op("DequantizeLinear", data, wide, axis=1)
        return self.graph.op("Cast", matrix, to=DTYPES[self.activations].value)  # type: ignore[no-any-return]

    def _fp8(self, group: str, matrix: Callable[[], torch.Tensor]) -> Value:
        values, scales = self.quantizer.fp8(group, matrix)  # float8 [N, K], fp32 [N]
        if self.dequantized:
            return self.floats(f"{group}.weight", (values.float() * scales[:, None]).T)
        data = self.graph.weight(
            f"{group}.levels",
            values.T.contiguous().view(torch.uint8).numpy(),
            ir.DataType.FLOAT8E4M3FN,
            (values.shape[1], values.shape[0]),
        )
        wide = self.floats(f"{group}.scales", scales)
        return self.graph.op("DequantizeLinear", data, wide, axis=1)  # type: ignore[no-any-return]

    def _nvfp4(self, group: str, matrix: Callable[[], torch.Tensor]) -> Value:
        columns = self.weights.columns(group)
        assert columns % NVFP4_BLOCK == 0, f"{group}: {columns}, nvfp4"  # as above
        blocks = self.quantizer.nvfp4(group, matrix)
        if self.dequantized:
            return self.floats(f"{group}.weight", blocks.dequantize().T)
        rows = len(blocks.codes)
        data = self.graph.weight(
            f"{group}.levels",
            pack_nibbles(blocks.codes.T),
            ir.DataType.FLOAT4E2M1,
            (columns, rows),
        )
        narrow = self.graph.weight(
            f"{group}.scales",
            blocks.scales.T.contiguous().view(torch.uint8).numpy(),
            ir.DataType.FLOAT8E4M3FN,
            (columns // NVFP4_BLOCK, rows),
        )
        whole = self.floats(f"{group}.scale", blocks.scale)
        scales = self.graph.op("DequantizeLinear", narrow, whole)
        return self.graph.op(  # type: ignore[no-any-return]
            "DequantizeLinear", data, scales, axis=0, block_size=NVFP4_BLOCK
        )

    def _int8_inputs(self, x: Value, group: str) -> Value:
        scale = self.floats(
            f"{group}.input_scale", torch.tensor(self.quantizer.input_peak(group) / 127)
        )
        zero = self.graph.constant("int8.zero", np.array(0, dtype=np.int8))
        levels = self.graph.op("QuantizeLinear", x, scale, zero)
        return self.graph.op("DequantizeLinear", levels, scale, zero)  # type: ignore[no-any-return]

    def _fp8_inputs(self, x: Value, group: str) -> Value:
        largest = torch.tensor(self.quantizer.input_peak(group) / FP8_MAX)
        scale = self.floats(f"{group}.input_scale", largest)
        dtype: Any = ir.DataType.FLOAT8E4M3FN.value
        levels = self.graph.op("QuantizeLinear", x, scale, output_dtype=dtype)
        return self.graph.op("DequantizeLinear", levels, scale)  # type: ignore[no-any-return]
