"""Tensors as the bytes that ONNX stores, for the types that numpy does not have."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from edgelm.export.graph.builder import Graph
from edgelm.quantize.precision import Bf16, Fp16, Fp32, Unquantized

Activations = Literal["fp32", "fp16", "bf16"]
Bias = torch.Tensor | None

DTYPES: dict[Activations, ir.DataType] = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}
TORCH_DTYPES: dict[Activations, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def as_precision(tensor: torch.Tensor, precision: Unquantized) -> torch.Tensor:
    """A tensor as a precision stores it, whatever type the graph around it computes in."""
    kinds = {Fp32: torch.float32, Fp16: torch.float16, Bf16: torch.bfloat16}
    return tensor.to(kinds[type(precision)])


def float_bytes(tensor: torch.Tensor, dtype: Activations) -> npt.NDArray[Any]:
    """A tensor rounded to a floating-point type; bfloat16 comes as its bits in uint16."""
    stored = tensor.detach().to(TORCH_DTYPES[dtype]).contiguous()
    if dtype == "bf16":
        bits: npt.NDArray[Any] = stored.view(torch.uint16).numpy()
        return bits
    array: npt.NDArray[Any] = stored.numpy()
    return array


def pack_nibbles(values: torch.Tensor) -> npt.NDArray[np.uint8]:
    """4-bit elements (in the low halves of uint8, any shape) two a byte, the first one low."""
    flat = values.flatten()
    flat = torch.nn.functional.pad(flat, (0, flat.numel() % 2))
    packed: npt.NDArray[np.uint8] = (flat[::2] | (flat[1::2] << 4)).numpy()
    return packed


def write_floats(graph: Graph, name: str, tensor: torch.Tensor, dtype: Activations) -> ir.Value:
    """Append a tensor to a graph's data file, rounded to a floating-point type."""
    return graph.weight(name, float_bytes(tensor, dtype), DTYPES[dtype], tuple(tensor.shape))
