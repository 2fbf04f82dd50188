"""The levels of a quantized source in the form of a target's kernels, bit for bit.

Rows are put together and reordered as the decoder executes them; constants that are folded into
rows multiply the scales. Where that changes numbers, or a kernel's format does not hold them, there
is nothing to take over, and the matrix is quantized again from its dequantized weights.
"""

from typing import NamedTuple

import torch

from edgelm.checkpoint.quantized.formats.mxfp4 import Experts
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.grids import Fp8Matrix, Inputs, IntegerGrid, Matrix, Nvfp4Blocks
from edgelm.quantize.precision import (
    NVFP4_BLOCK,
    Fp8,
    Int4,
    Int8,
    Mxfp4,
    Nvfp4,
    WeightPrecision,
)
from edgelm.quantize.rtn import Quantized


class Fp8Channels(NamedTuple):
    """E4M3 values [N, K] and fp32 scales [N]."""

    values: torch.Tensor
    scales: torch.Tensor


class Mxfp4Experts(NamedTuple):
    """Two E2M1 codes a byte [experts, N, K / 2] and E8M0 exponents [experts, N, K / 32], uint8."""

    codes: torch.Tensor
    exponents: torch.Tensor


def is_held(weights: Weights, group: str, precision: WeightPrecision) -> bool:
    """Whether a precision holds the levels of all parts of a group; no level is read."""
    packed = weights.packed(group)
    if packed is None:
        return False
    if any(one.inputs is not None for one in packed) and weights.inputs(group) is None:
        return False
    columns = weights.columns(group)
    return all(_holds(precision, one.precision, columns) for one in packed)


def _holds(precision: WeightPrecision, source: WeightPrecision | None, columns: int) -> bool:
    if isinstance(source, Nvfp4) and isinstance(precision, Int8):
        return precision.group_size == NVFP4_BLOCK
    if not (isinstance(source, Int4 | Int8) and isinstance(precision, Int4 | Int8)):
        return isinstance(source, Fp8 | Nvfp4 | Mxfp4) and source == precision
    if isinstance(source, Int8) and isinstance(precision, Int4):
        return False
    if precision.symmetric and not source.symmetric:
        return False
    if source.group_size == 0 or source.group_size >= columns:
        return True
    return bool(precision.group_size) and source.group_size % precision.group_size == 0


def integers_from_source(
    weights: Weights, group: str, precision: Int4 | Int8, *, positive_scales: bool
) -> Quantized | None:
    """A group's levels, if a format holds all of its parts exactly."""
    bits, columns = 4 if isinstance(precision, Int4) else 8, weights.columns(group)
    inputs = weights.inputs(group)
    parts: list[IntegerGrid] = []
    for matrix in _matrices(weights, group):
        grid = _as_integers(matrix, bits)
        if grid is None:
            return None
        try:
            grid = _for_inputs(grid, inputs).widened(bits)
            parts.append(grid.regrouped(precision.group_size or columns))
        except ValueError:
            return None
    if not parts:
        return None
    whole = _in_execution_order(weights, group, parts)
    if whole is None or (precision.symmetric and whole.zero_points is not None):
        return None
    if positive_scales and bool((whole.scales < 0).any()):
        return None
    return whole.quantized()


def fp8_from_source(weights: Weights, group: str) -> Fp8Channels | None:
    """A group's E4M3 values, if each row has one scale."""
    matrices = _matrices(weights, group)
    if not matrices or weights.column_factors(group) is not None:
        return None
    values, scales = [], []
    for matrix in matrices:
        own = matrix.channel_scales() if isinstance(matrix, Fp8Matrix) else None
        if own is None or not isinstance(matrix, Fp8Matrix):
            return None
        values.append(matrix.values.view(torch.uint8))  # few operations take E4M3
        scales.append(own)
    codes, steps = torch.cat(values), torch.cat(scales)
    if (order := weights.row_order(group)) is not None:
        codes, steps = codes[order], steps[order]
    if (factors := weights.row_factors(group)) is not None:
        steps = steps * factors
    return Fp8Channels(codes.view(torch.float8_e4m3fn), steps)


def nvfp4_from_source(weights: Weights, group: str) -> Nvfp4Blocks | None:
    """A group's NVFP4, if its parts share the scale of the matrix."""
    matrices = _matrices(weights, group)
    blocks = [one for one in matrices if isinstance(one, Nvfp4Blocks)]
    folded = weights.column_factors(group), weights.row_factors(group)
    if not blocks or len(blocks) != len(matrices) or any(one is not None for one in folded):
        return None
    if any(not torch.equal(one.scale, blocks[0].scale) for one in blocks):
        return None
    codes = torch.cat([one.codes for one in blocks])
    scales = torch.cat([one.scales.view(torch.uint8) for one in blocks])
    if (order := weights.row_order(group)) is not None:
        codes, scales = codes[order], scales[order]
    return Nvfp4Blocks(codes, scales.view(torch.float8_e4m3fn), blocks[0].scale)


def mxfp4_from_source(weights: Weights, group: str) -> Mxfp4Experts:
    """The experts of a group, whose source stores them in MXFP4."""
    [packed] = weights.packed(group) or []
    experts = packed.read()
    assert isinstance(experts, Experts), f"{group} is not stored in MXFP4"
    codes, exponents = experts.codes()
    return Mxfp4Experts(codes.flatten(2), exponents)


def source_input_peak(weights: Weights, group: str) -> float | None:
    """The largest input that a source in E4M3 expects, where it says so for all parts."""
    peaks = []
    for matrix in _matrices(weights, group):
        if not isinstance(matrix, Fp8Matrix) or matrix.input_scale is None:
            return None
        peaks.append(matrix.input_scale * torch.finfo(torch.float8_e4m3fn).max)
    return max(peaks, default=None)


def _matrices(weights: Weights, group: str) -> list[Matrix]:
    """What a group's parts store; nothing where one of them is not quantized to a grid."""
    packed = weights.packed(group) or []
    if any(one.precision is None for one in packed):
        return []
    found = [one.read() for one in packed]
    grids = [one for one in found if isinstance(one, IntegerGrid | Fp8Matrix | Nvfp4Blocks)]
    return grids if len(grids) == len(found) else []


def _as_integers(matrix: Matrix, bits: int) -> IntegerGrid | None:
    if isinstance(matrix, Nvfp4Blocks):
        return matrix.integers() if bits == 8 else None
    return matrix if isinstance(matrix, IntegerGrid) and matrix.bits <= bits else None


def _for_inputs(grid: IntegerGrid, inputs: Inputs | None) -> IntegerGrid:
    found = grid.for_inputs(inputs)
    if found.column_factors is not None:
        raise ValueError("factors of the inputs are left")
    return found


def _in_execution_order(
    weights: Weights, group: str, parts: list[IntegerGrid]
) -> IntegerGrid | None:
    """One grid of all rows; None where the factors of columns differ within a group."""
    levels = torch.cat([one.levels for one in parts])
    scales = torch.cat([one.scales for one in parts])
    zeros = None
    if any(one.zero_points is not None for one in parts):
        zeros = torch.cat([_zero_points(one) for one in parts])
    if (order := weights.row_order(group)) is not None:
        levels, scales = levels[order], scales[order]
        zeros = None if zeros is None else zeros[order]
    size = parts[0].group_size
    if (columns := weights.folded_columns(group)) is not None:
        inputs = weights.inputs(group)
        if inputs is not None and inputs.order is not None:
            columns = columns[inputs.order]
        by_group = _by_group(columns, size)
        if by_group is None:
            return None
        scales = scales * by_group
    if (rows := weights.row_factors(group)) is not None:
        scales = scales * rows[:, None]
    return IntegerGrid(parts[0].bits, size, levels, scales, zeros)


def _zero_points(grid: IntegerGrid) -> torch.Tensor:
    if grid.zero_points is not None:
        return grid.zero_points
    return torch.full(grid.scales.shape, grid.middle, dtype=torch.uint8)


def _by_group(columns: torch.Tensor, size: int) -> torch.Tensor | None:
    """Factors of columns [K] as factors of groups, where those of a group are equal."""
    padding = -len(columns) % size
    blocks = torch.cat([columns, columns[-1:].expand(padding)]).view(-1, size)
    return blocks[:, 0] if bool((blocks == blocks[:, :1]).all()) else None
