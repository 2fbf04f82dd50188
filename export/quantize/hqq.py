"""HQQ: half-quadratic quantization, which needs no text.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", Mobius Labs, 2023.
Outliers should not decide a block's grid, so errors count by their power 0.7. To make that
solvable the error is split in two: a sparse part, found by shrinkage, and a quadratic rest, for
which the grid has a closed form. Both steps alternate, and the best round of each block stays.

The authors fix the scale and let the zero point be any real number. Kernels need integer
zero points; moving those by whole steps alone changes nothing, so here the scale is refitted too.
"""

import torch

from edgelm.quantize.precision import Int4, Int8
from edgelm.quantize.rtn import Quantized, grid, representable

_POWER = 0.7
_BETA = 10.0  # weight of the quadratic part, for errors in steps; it grows every round
_GROWTH = 1.01
_ROUNDS = 20
_ELEMENTS = 1 << 21  # of the matrix worked on at a time


def hqq(
    weight: torch.Tensor, precision: Int4 | Int8, *, positive_scales: bool = False
) -> Quantized:
    """Quantize [N, K] by alternating between levels, sparse errors and the grid."""
    bits = 4 if isinstance(precision, Int4) else 8
    padding = (0, -weight.shape[1] % precision.group_size)
    parts = [
        _alternate(
            torch.nn.functional.pad(rows.float(), padding).unflatten(1, (-1, precision.group_size)),
            bits,
            precision.symmetric,
            positive_scales,
        )
        for rows in weight.split(max(1, _ELEMENTS // weight.shape[1]))
    ]
    levels, scales, zeros = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Quantized(
        bits,
        precision.group_size,
        levels.to(torch.uint8),
        scales.half(),
        None if precision.symmetric else zeros.to(torch.uint8),
    )


def _alternate(
    blocks: torch.Tensor, bits: int, symmetric: bool, positive_scales: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best levels [N, blocks, group_size], scales and zero points [N, blocks]."""
    top = (1 << bits) - 1
    scales, zeros = grid(blocks, bits, symmetric, positive_scales=positive_scales)
    best = torch.zeros_like(blocks), scales, zeros
    lowest = torch.full_like(scales, torch.inf)
    beta = _BETA
    for _ in range(_ROUNDS):
        levels = torch.round(blocks / scales[..., None]).add_(zeros[..., None]).clamp_(0, top)
        error = blocks - (levels - zeros[..., None]) * scales[..., None]
        cost = error.abs().pow(_POWER).sum(-1)
        wins, lowest = cost < lowest, torch.minimum(cost, lowest)
        best = (
            torch.where(wins[..., None], levels, best[0]),
            torch.where(wins, scales, best[1]),
            torch.where(wins, zeros, best[2]),
        )
        target = blocks - _shrink(error / scales[..., None], beta) * scales[..., None]
        if not symmetric:
            zeros = torch.round((levels - target / scales[..., None]).mean(-1)).clamp_(0, top)
        steps = levels - zeros[..., None]
        squares = steps.square().sum(-1).clamp(min=1e-30)
        scales = representable((steps * target).sum(-1) / squares)
        beta *= _GROWTH
    return best


def _shrink(error: torch.Tensor, beta: float) -> torch.Tensor:
    """The minimum over x of |x|^p + beta / 2 · (x − error)², generalized soft thresholding."""
    size = error.abs()
    shrunk = torch.relu(size - size.clamp(min=1e-8).pow(_POWER - 1) / beta)
    return torch.copysign(shrunk, error)
