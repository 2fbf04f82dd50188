"""Weights in eight- and four-bit floating point.

FP8 is E4M3 (arXiv 2209.05433) with one scale per output channel. NVFP4 is E2M1 with an E4M3 scale
for every 16 weights along the input axis and one fp32 scale for the matrix, as in NVIDIA's
TensorRT documentation ("two-level" block quantization).
"""

from typing import NamedTuple

import torch

FP8_LARGEST = 448.0
NVFP4_BLOCK = 16
_FP4_LARGEST = 6.0
# Magnitudes by code; the fourth bit is the sign.
_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


class Nvfp4Blocks(NamedTuple):
    """A matrix [N, K]: codes uint8 [N, K] (low halves), scales float8 [N, K/16], scale fp32 []."""

    codes: torch.Tensor
    scales: torch.Tensor
    scale: torch.Tensor

    def dequantize(self) -> torch.Tensor:
        """The matrix as an engine sees it, fp32 [N, K]."""
        values = _FP4[(self.codes & 7).long()]
        values = torch.where(self.codes >= 8, -values, values)
        steps = (self.scales.float() * self.scale).repeat_interleave(NVFP4_BLOCK, 1)
        return values * steps


def to_fp8(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E4M3 values [N, K] and fp32 scales [N] whose product is nearest to a matrix."""
    scales = (matrix.abs().amax(1) / FP8_LARGEST).clamp(min=torch.finfo(torch.float16).tiny)
    scales = scales.half().float()  # as an fp16 engine will hold them
    values = (matrix / scales[:, None]).clamp(-FP8_LARGEST, FP8_LARGEST)
    return values.to(torch.float8_e4m3fn), scales


def to_nvfp4(matrix: torch.Tensor) -> Nvfp4Blocks:
    """Nearest NVFP4 of a matrix [N, K]; K must be a multiple of 16."""
    blocks = matrix.unflatten(1, (-1, NVFP4_BLOCK))
    largest = blocks.abs().amax(-1)
    scale = (largest.max() / (_FP4_LARGEST * FP8_LARGEST)).clamp(min=1e-12)
    # A block of zeros still needs a scale that is a normal number.
    steps = (largest / _FP4_LARGEST / scale).clamp(min=2.0**-6, max=FP8_LARGEST)
    scales = steps.to(torch.float8_e4m3fn)
    wide = (scales.float() * scale)[..., None]
    magnitudes = (blocks / wide).abs()
    middles = (_FP4[1:] + _FP4[:-1]) / 2
    codes = torch.bucketize(magnitudes, middles).to(torch.uint8)
    codes = torch.where(blocks < 0, codes | 8, codes)
    return Nvfp4Blocks(codes.flatten(1), scales, scale)
