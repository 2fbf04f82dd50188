"""The tensors of a Hugging Face folder by the decoder's names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgelm.checkpoint.quantized.packed import PackedMatrix
from edgelm.checkpoint.weights.own_sizes import own_part
from edgelm.checkpoint.weights.safetensors_header import StoredTensor
from edgelm.checkpoint.weights.values import read_rows, read_tensor
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.tensor_shapes import tensor_shapes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FolderTensors:
    """Reads tensors by name; of a matrix also a few rows, without reading the others."""

    spec: DecoderSpec
    stored: Mapping[str, StoredTensor]
    quantized: Mapping[str, PackedMatrix]

    def __call__(self, name: str) -> "torch.Tensor":
        """One tensor in its stored type; in fp32 where it is quantized."""
        packed = self.quantized.get(name)
        whole = read_tensor(self.stored[name]) if packed is None else packed.dequantize()
        return own_part(self.spec, name, whole) if self.spec.has_own_sizes else whole

    def rows(self, name: str, rows: "torch.Tensor") -> "torch.Tensor":
        """Rows of a matrix by their numbers, int64 [R]."""
        return read_rows(self.stored[name], rows)

    def has_rows(self, name: str) -> bool:
        """Whether rows can be read alone: not of levels, nor of padded and stacked matrices."""
        stored = self.stored[name]
        padded = self.spec.has_own_sizes and stored.shape != tensor_shapes(self.spec)[name]
        return name not in self.quantized and not stored.parts and not padded
