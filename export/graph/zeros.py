"""Zeros in place of weights, to count a graph's bytes before anything is quantized.

The dialects write them as they would write the weights, so the count is exact for all of them.
"""

from dataclasses import dataclass

import torch

from edgelm.checkpoint.quantized.fp4 import MXFP4_BLOCK
from edgelm.export.quantize.quantizer import Quantizer, ReadMatrix
from edgelm.export.quantize.source_levels import Mxfp4Experts
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import Int4, Int8
from edgelm.quantize.rtn import Quantized
from edgelm.spec.tensor_names import stored_name


@dataclass(frozen=True)
class ZeroWeights(Weights):
    """Tensors of the right shapes that take no memory; nothing is read from the checkpoint."""

    def matrix(self, group: str) -> torch.Tensor:
        return torch.zeros(()).expand(self.shape(group))

    def bias(self, group: str) -> torch.Tensor | None:
        return torch.zeros(()).expand(self.shape(group)[0]) if self.has_bias(group) else None

    def norm(self, name: str) -> torch.Tensor:
        return self.tensor(f"model.{name}.weight")

    def tensor(self, name: str) -> torch.Tensor:
        stored = stored_name(self.checkpoint.spec.family, name)
        return torch.zeros(()).expand(self.checkpoint.shapes[stored])


class ZeroQuantizer(Quantizer):
    """Integers of the right shapes."""

    def quantize(self, group: str, matrix: ReadMatrix, precision: Int4 | Int8) -> Quantized:
        rows, columns = self.weights.shape(group)
        size = precision.group_size
        blocks = -(-columns // size)
        zero = torch.zeros((), dtype=torch.uint8)
        return Quantized(
            4 if isinstance(precision, Int4) else 8,
            size,
            zero.expand(rows, blocks, size),
            torch.zeros((), dtype=torch.float16).expand(rows, blocks),
            None if precision.symmetric else zero.expand(rows, blocks),
        )

    def mxfp4(self, group: str) -> Mxfp4Experts:
        rows, columns = self.weights.shape(group)
        experts = self.weights.experts(group)
        zero = torch.zeros((), dtype=torch.uint8)
        return Mxfp4Experts(
            zero.expand(experts, rows // experts, columns // 2),
            zero.expand(experts, rows // experts, columns // MXFP4_BLOCK),
        )
