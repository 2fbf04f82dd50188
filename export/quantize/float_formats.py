"""Weights in eight- and four-bit floating point.

FP8 is E4M3 (arXiv 2209.05433) with one scale per output channel. NVFP4 is E2M1 with an E4M3 scale
for every 16 weights along the input axis and one fp32 scale for the matrix, as in NVIDIA's
TensorRT documentation ("two-level" block quantization).
"""

from functools import partial

import torch

from edgelm.quantize.gptq import Compensation, row_slices
from edgelm.quantize.grids import E2M1, Nvfp4Blocks
from edgelm.quantize.precision import NVFP4_BLOCK

FP8_MAX = 448.0
_CACHED = 1 << 18  # elements worked on at a time
_FP4_MAX = 6.0
# What a block's largest weight may be scaled to, best guess first: about the E4M3 scales that there
# are to a factor of two. Beyond 6 the largest is cut, and the others have finer steps.
_SCALED_MAX = (6.0, 4.0, 5.0, 4.5, 5.5, 6.5, 7.0, 8.0)


def to_fp8(
    matrix: torch.Tensor, compensation: Compensation | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """E4M3 values [N, K] and fp32 scales [N] whose product is near to a matrix.

    With compensation later columns make up for the errors of earlier ones; else every value is
    the nearest.
    """
    scales = (matrix.abs().amax(1) / FP8_MAX).clamp(min=torch.finfo(torch.float16).tiny)
    scales = scales.half().float()  # as an fp16 engine will hold them
    values = []
    for rows in row_slices(matrix.shape):
        part, steps = matrix[rows], scales[rows]
        if compensation:
            part = compensation(part, partial(_fp8_column, steps))
        values.append(_fp8(part, steps[:, None]))
    return torch.cat(values), scales


def _fp8(values: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    return (values / steps).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def _fp8_column(steps: torch.Tensor, _: int, values: torch.Tensor) -> torch.Tensor:
    return _fp8(values, steps).float().mul_(steps)


def to_nvfp4(
    matrix: torch.Tensor,
    importance: torch.Tensor | None = None,
    compensation: Compensation | None = None,
) -> Nvfp4Blocks:
    """NVFP4 near to a matrix [N, K]; K must be a multiple of 16.

    Args:
        matrix: to be quantized.
        importance: what a squared error of each column [K] costs, for the choice of scales; by
            default equal for all, with compensation its own.
        compensation: later columns make up for the errors of earlier ones; else every value is
            the nearest on its block's scale.
    """
    if compensation:
        importance = compensation.importance
    if importance is None:
        importance = torch.ones(matrix.shape[1])
    # A channel that never fired counts little, but counts.
    weights = importance.clamp(min=1e-6 * float(importance.mean()) + 1e-30).view(-1, NVFP4_BLOCK)
    largest = max(float(matrix[rows].abs().max()) for rows in row_slices(matrix.shape))
    scale = torch.tensor(largest / (_FP4_MAX * FP8_MAX))
    # As an fp16 engine will hold it.
    scale = scale.clamp(min=torch.finfo(torch.float16).tiny).half().float()
    codes, scales = [], []
    for rows in row_slices(matrix.shape):
        part = matrix[rows].float()
        narrow = _scales_of(part, scale, weights)
        steps = narrow.float() * scale
        if compensation:
            part = compensation(part, partial(_fp4_column, steps.T.contiguous()))
        codes.append(_codes(part / steps.repeat_interleave(NVFP4_BLOCK, 1)))
        scales.append(narrow)
    return Nvfp4Blocks(torch.cat(codes), torch.cat(scales), scale)


def _scales_of(part: torch.Tensor, scale: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """E4M3 scales [N, K/16] of rows [N, K], in pieces that stay in the cache."""
    pieces = part.unflatten(1, (-1, NVFP4_BLOCK)).split(max(1, _CACHED // part.shape[1]))
    return torch.cat([_block_scales(piece, scale, weights) for piece in pieces])


def _block_scales(blocks: torch.Tensor, scale: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """E4M3 scales [N, K/16] of blocks [N, K/16, 16], by what they leave of error."""
    peaks = blocks.abs().amax(-1)
    best, found = torch.full_like(peaks, float("inf")), peaks
    for top in _SCALED_MAX:
        # A block of zeros still needs a scale that is a normal number.
        steps = (peaks / top / scale).clamp(min=2.0**-6, max=FP8_MAX)
        steps = steps.to(torch.float8_e4m3fn).float()
        values = _fp4(blocks, (steps * scale)[..., None])
        error = (values - blocks).square_().mul_(weights).sum(-1)
        better = error < best
        best, found = torch.where(better, error, best), torch.where(better, steps, found)
    return found.to(torch.float8_e4m3fn)


def _fp4(values: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """The nearest values that E2M1 numbers times steps have."""
    scaled = values / steps
    size = scaled.abs()
    # Between its powers of two E2M1 counts in halves, ones and twos.
    unit = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.round(scaled / unit).mul_(unit).clamp_(-_FP4_MAX, _FP4_MAX).mul_(steps)


def _fp4_column(steps: torch.Tensor, column: int, values: torch.Tensor) -> torch.Tensor:
    return _fp4(values, steps[column // NVFP4_BLOCK])


def _codes(scaled: torch.Tensor) -> torch.Tensor:
    """E2M1 codes, uint8, of values in units of their block's scale."""
    magnitudes = _fp4(scaled, torch.ones(())).abs()
    codes = torch.bucketize(magnitudes, E2M1).to(torch.uint8)
    return torch.where(scaled < 0, codes | 8, codes)
