"""Round-to-nearest weight quantization in blocks along the input axis.

`dequantized = (quantized - zero_point) * scale`, one fp16 scale a block. The scale is not simply
the largest weight over the largest level: a few shrunken ranges are tried and the one with the
least squared error wins, which costs outliers a little and everybody else less. Zero points are
integers that the range makes exact, never clamped ones.
"""

from dataclasses import dataclass

import torch

from edgelm.precision import Int4, Int8

# Fractions of the full range that are tried. Beyond 0.7 nothing wins on real weights.
_SHRINK_INT4 = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72)
_SHRINK_INT8 = (1.0,)


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix [N, K] in blocks: K is padded with zeros to whole blocks.

    levels: uint8 [N, blocks, group_size], one level a byte.
    scales: float16 [N, blocks].
    zero_points: uint8 [N, blocks], or None if the middle level is the zero point everywhere.
    """

    bits: int
    group_size: int
    levels: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None

    @property
    def middle(self) -> int:
        """The zero point of a symmetric matrix."""
        return 1 << (self.bits - 1)

    def dequantize(self, columns: int) -> torch.Tensor:
        """The matrix as the graph sees it, fp32 [N, columns]."""
        zero = self.middle if self.zero_points is None else self.zero_points[..., None]
        values = (self.levels.float() - zero) * self.scales.float()[..., None]
        return values.flatten(1)[:, :columns]


def quantize(weight: torch.Tensor, precision: Int4 | Int8) -> Quantized:
    """Quantize fp32 [N, K] to nearest levels.

    Works through the rows in slices, so that memory stays a small multiple of one matrix.
    """
    bits = 4 if isinstance(precision, Int4) else 8
    shrink = _SHRINK_INT4 if bits == 4 else _SHRINK_INT8
    rows = max(1, (1 << 22) // weight.shape[1])
    parts = [
        _quantize_rows(part, bits, precision.group_size, precision.symmetric, shrink)
        for part in weight.split(rows)
    ]
    levels, scales, zeros = zip(*parts, strict=True)
    return Quantized(
        bits,
        precision.group_size,
        torch.cat(levels),
        torch.cat(scales),
        None if precision.symmetric else torch.cat(zeros),
    )


def _quantize_rows(
    weight: torch.Tensor, bits: int, group_size: int, symmetric: bool, shrink: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    padding = -weight.shape[1] % group_size
    blocks = torch.nn.functional.pad(weight.float(), (0, padding)).unflatten(1, (-1, group_size))
    top = (1 << bits) - 1
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    best_error = torch.full(blocks.shape[:2], torch.inf)
    for fraction in shrink:
        scales, zeros = (_symmetric if symmetric else _asymmetric)(blocks, top, fraction)
        levels = torch.clamp(torch.round(blocks / scales[..., None]) + zeros[..., None], 0, top)
        error = ((levels - zeros[..., None]) * scales[..., None] - blocks).square().sum(-1)
        if best is None:
            best, best_error = (levels, scales, zeros), error
            continue
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = (
            torch.where(better[..., None], levels, best[0]),
            torch.where(better, scales, best[1]),
            torch.where(better, zeros, best[2]),
        )
    assert best is not None
    levels, scales, zeros = best
    return levels.to(torch.uint8), scales.half(), zeros.to(torch.uint8)


def _symmetric(
    blocks: torch.Tensor, top: int, fraction: float
) -> tuple[torch.Tensor, torch.Tensor]:
    # The weight of largest magnitude falls on the lowest level, which reaches one step further
    # than the highest: its sign decides the sign of the scale.
    middle = (top + 1) // 2
    lowest, highest = blocks.amin(-1), blocks.amax(-1)
    extreme = torch.where(-lowest > highest, lowest, highest)
    scales = _representable(extreme * fraction / -middle)
    return scales, torch.full_like(scales, middle)


def _asymmetric(
    blocks: torch.Tensor, top: int, fraction: float
) -> tuple[torch.Tensor, torch.Tensor]:
    # The range includes zero, so the zero point is always one of the levels.
    lowest = blocks.amin(-1).clamp(max=0) * fraction
    highest = blocks.amax(-1).clamp(min=0) * fraction
    scales = _representable((highest - lowest) / top)
    return scales, torch.clamp(torch.round(-lowest / scales), 0, top)


def _representable(scales: torch.Tensor) -> torch.Tensor:
    """Scales as fp16 stores them, so that levels are chosen for the scale that is used."""
    tiny = torch.finfo(torch.float16).tiny
    stored = scales.half().float()
    return torch.where(stored.abs() < tiny, torch.full_like(stored, tiny), stored)


def pack(quantized: Quantized) -> torch.Tensor:
    """Levels in bytes, uint8 [N, blocks, group_size * bits / 8], low nibble first."""
    if quantized.bits == 8:
        return quantized.levels
    return quantized.levels[..., ::2] | (quantized.levels[..., 1::2] << 4)


def pack_zero_points(quantized: Quantized) -> torch.Tensor | None:
    """Zero points in bytes, uint8 [N, ceil(blocks * bits / 8)], low nibble first."""
    zeros = quantized.zero_points
    if zeros is None or quantized.bits == 8:
        return zeros
    zeros = torch.nn.functional.pad(zeros, (0, zeros.shape[1] % 2))
    return zeros[..., ::2] | (zeros[..., 1::2] << 4)
