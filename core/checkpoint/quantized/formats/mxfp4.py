"""MXFP4 as gpt-oss stores the weights of its experts.

`NAME_blocks` uint8 [experts, N, K/32, 16] and `NAME_scales` uint8 [experts, N, K/32] are the
parameter `NAME` [experts, K, N], which transformers keeps transposed.
"""

from collections.abc import Callable
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
        shape = expert_shape(parts)

        def codes() -> "tuple[torch.Tensor, torch.Tensor]":
            import torch

            return parts.tensor("blocks"), parts.tensor("scales").view(torch.uint8)

        experts = Experts(shape, codes)
        return PackedMatrix(shape, self.name, parts.paths, lambda: experts, Mxfp4Precision)


@dataclass(frozen=True)
class Experts:
    """One parameter of all experts of a layer.

    shape: [experts, K, N].
    codes: reads codes uint8 [experts, N, K/32, 16] and exponents uint8 [experts, N, K/32].
    """

    shape: tuple[int, int, int]
    codes: "Callable[[], tuple[torch.Tensor, torch.Tensor]]"

    def dequantize(self) -> "torch.Tensor":
        """The parameter, fp32 [experts, K, N]; one expert is unpacked at a time."""
        import torch

        from edgelm.checkpoint.quantized.fp4 import mxfp4_values

        codes, exponents = self.codes()
        values = torch.empty(self.shape)
        for index, expert in enumerate(values):
            expert.copy_(mxfp4_values(codes[index], exponents[index]).T)
        return values


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
