"""MXFP4 as gpt-oss stores the weights of its experts.

`NAME_blocks` uint8 [experts, N, K/32, 16] and `NAME_scales` uint8 [experts, N, K/32] are the
parameter `NAME` [experts, K, N], which transformers keeps transposed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgelm.checkpoint.quantized.fp4 import MXFP4_BLOCK
from edgelm.checkpoint.quantized.packed import PackedMatrix, Parts
from edgelm.checkpoint.quantized.settings import Settings
from edgelm.quantize.precision import Mxfp4 as Mxfp4Precision
from edgelm.quantize.precision import WeightPrecision

if TYPE_CHECKING:
    import torch

_BYTES = MXFP4_BLOCK // 2


class Mxfp4:
    """Reads the experts of gpt-oss."""

    name = "MXFP4"
    parts = frozenset({"blocks", "scales"})
    declared: WeightPrecision | None = Mxfp4Precision()

    def __init__(self, settings: Settings) -> None:
        pass

    def matrix(self, parts: Parts) -> PackedMatrix:
        """A parameter of all experts of a layer."""
        return PackedMatrix(
            expert_shape(parts), self.name, parts.paths, lambda: Experts(parts), Mxfp4Precision
        )


@dataclass(frozen=True)
class Experts:
    """One parameter of all experts of a layer, read one expert at a time."""

    parts: Parts

    def dequantize(self) -> "torch.Tensor":
        """The parameter, fp32 [experts, K, N]."""
        import torch

        experts, columns, rows = expert_shape(self.parts)
        values = torch.empty(experts, columns, rows)
        for index in range(experts):
            values[index] = self.expert(index).T
        return values

    def expert(self, index: int) -> "torch.Tensor":
        """The matrix of one expert, fp32 [N, K]."""
        from edgelm.checkpoint.quantized.fp4 import mxfp4_values

        codes, exponents = self.codes()
        return mxfp4_values(codes[index], exponents[index])

    def codes(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """As stored: codes uint8 [experts, N, K/32, 16], exponents uint8 [experts, N, K/32]."""
        import torch

        return self.parts.tensor("blocks"), self.parts.tensor("scales").view(torch.uint8)


def expert_shape(parts: Parts) -> tuple[int, int, int]:
    """[experts, K, N] of a parameter with the parts `blocks` and `scales`.

    Raises:
        BadCheckpoint: their shapes or types do not fit each other.
    """
    shape = parts.expect("blocks", ("U8",))
    if len(shape) != 4 or shape[-1] != _BYTES:
        raise parts.wrong("blocks", f"has shape {list(shape)}, expected [experts, N, K/32, 16]")
    parts.expect("scales", ("U8", "F8_E8M0"), shape[:3])
    return shape[0], shape[2] * MXFP4_BLOCK, shape[1]
