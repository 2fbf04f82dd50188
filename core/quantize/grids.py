"""Matrices as a quantized checkpoint stores them: levels and what turns them into numbers.

All are [N, K]: N output channels, K inputs. `dequantize` gives exactly what the format defines, in
fp32. `edgelm.quantize.rtn.Quantized` is the form that an engine's kernel takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from edgelm.quantize.precision import NVFP4_BLOCK
from edgelm.quantize.rtn import Quantized

_ELEMENTS = 1 << 22  # dequantized at a time
# Magnitudes of E2M1 by code; the fourth bit is the sign.
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_BYTE_MIDDLE = 128


class Inputs(NamedTuple):
    """What is done to a matrix's inputs before they meet its levels.

    factors: fp32 [K], what they are multiplied by first.
    order: int64 [K], the input that comes at every place then.
    """

    factors: torch.Tensor | None = None
    order: torch.Tensor | None = None

    def same(self, other: "Inputs") -> bool:
        """Whether two are equal."""
        return _equal(self.factors, other.factors) and _equal(self.order, other.order)


@dataclass(frozen=True)
class IntegerGrid:
    """`(levels - zero_points) * scales * column_factors`.

    bits: 4 or 8; formats with fewer use levels around the middle of four.
    group_size: neighboring columns that share a scale, if `order` is None.
    levels: uint8 [N, K].
    scales: fp32 [N, groups].
    zero_points: uint8 [N, groups]; None where all are the middle level.
    order: int64 [K], the group of every column, where groups are not of neighbors.
    column_factors: fp32 [K], what inputs are multiplied by first; None for ones.
    """

    bits: int
    group_size: int
    levels: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None = None
    order: torch.Tensor | None = None
    column_factors: torch.Tensor | None = None

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid."""
        return 1 << (self.bits - 1)

    def dequantize(self) -> torch.Tensor:
        """The matrix, fp32 [N, K]."""
        rows = max(1, _ELEMENTS // self.levels.shape[1])
        matrix = torch.empty(self.levels.shape)
        for at in range(0, len(self.levels), rows):
            matrix[at : at + rows] = self._dequantized(slice(at, at + rows))
        return matrix

    def _dequantized(self, rows: slice) -> torch.Tensor:
        zeros = self.zero_points
        zero = self.middle if zeros is None else self._by_column(zeros[rows])
        # In integers: uint8 would wrap.
        steps = (self.levels[rows].short() - zero).float()
        values = steps.mul_(self._by_column(self.scales[rows]))
        return values if self.column_factors is None else values.mul_(self.column_factors)

    def _by_column(self, grouped: torch.Tensor) -> torch.Tensor:
        """What groups have [rows, groups], for every column [rows, K]."""
        if self.order is not None:
            return grouped[:, self.order]
        return grouped.repeat_interleave(self.group_size, 1)[:, : self.levels.shape[1]]

    def inputs(self) -> Inputs | None:
        """What must be done to the inputs, so that neighbors share a group and factors are one."""
        if self.order is None and self.column_factors is None:
            return None
        order = None if self.order is None else input_order(self.order, self.group_size)
        return Inputs(self.column_factors, order)

    def for_inputs(self, inputs: Inputs | None) -> "IntegerGrid":
        """The grid that meets the inputs after that: its own, or none."""
        if inputs is None:
            return self
        levels = self.levels if inputs.order is None else self.levels[:, inputs.order]
        factors = self.column_factors if inputs.factors is None else None
        order = self.order if inputs.order is None else None
        return replace(self, levels=levels, order=order, column_factors=factors)

    def widened(self, bits: int) -> "IntegerGrid":
        """The same numbers with more bits a level."""
        shift = (1 << (bits - 1)) - self.middle
        if shift < 0:
            raise ValueError(f"{self.bits} bits do not fit into {bits}")
        zeros = self.zero_points
        return replace(
            self,
            bits=bits,
            levels=self.levels + shift,
            zero_points=None if zeros is None else zeros + shift,
        )

    def regrouped(self, group_size: int) -> "IntegerGrid":
        """The same numbers in smaller groups, several of which share a scale.

        Raises:
            ValueError: columns are not in the order of their groups, or groups do not divide.
        """
        columns = self.levels.shape[1]
        one = self.group_size >= columns  # is split into groups of any size
        if self.order is not None or (self.group_size % group_size and not one):
            raise ValueError(f"groups of {self.group_size} cannot be split into {group_size}")
        count = -(-columns // group_size)
        times = count if one else self.group_size // group_size

        def repeated(grouped: torch.Tensor) -> torch.Tensor:
            return grouped.repeat_interleave(times, 1)[:, :count]

        zeros = self.zero_points
        return replace(
            self,
            group_size=group_size,
            scales=repeated(self.scales),
            zero_points=None if zeros is None else repeated(zeros),
        )

    def quantized(self) -> Quantized:
        """In the form of a kernel; the scales are fp16 if all are fp16 numbers, else fp32."""
        if self.order is not None or self.column_factors is not None:
            raise ValueError("kernels need neighboring columns in a group, and no factors")
        padding = -self.levels.shape[1] % self.group_size
        levels = torch.nn.functional.pad(self.levels, (0, padding))
        blocks = levels.unflatten(1, (-1, self.group_size))
        if padding:  # the level of zero
            fill = self.middle if self.zero_points is None else self.zero_points[:, -1:]
            blocks[:, -1, -padding:] = fill
        return Quantized(
            self.bits, self.group_size, blocks, _narrowed(self.scales), self.zero_points
        )


@dataclass(frozen=True)
class Fp8Matrix:
    """E4M3 `values` [N, K] times fp32 `scales` of blocks [rows, columns] of `block` elements.

    `input_scale`: what the checkpoint divides the inputs by before it rounds them to E4M3, where
    that is a constant.
    """

    values: torch.Tensor
    scales: torch.Tensor
    block: tuple[int, int]
    input_scale: float | None = None

    def dequantize(self) -> torch.Tensor:
        """The matrix, fp32 [N, K]."""
        height, width = self.block
        rows, columns = self.values.shape
        matrix = torch.empty(self.values.shape)
        step = max(1, _ELEMENTS // (columns * height)) * height
        for at in range(0, rows, step):
            part = self.values[at : at + step].float()
            scales = self.scales[at // height : -(-(at + step) // height)]
            by_row = scales.repeat_interleave(height, 0)[: len(part)]
            matrix[at : at + step] = part.mul_(by_row.repeat_interleave(width, 1)[:, :columns])
        return matrix

    def channel_scales(self) -> torch.Tensor | None:
        """Scales [N], if no two columns of a row have different ones."""
        if self.scales.shape[1] != 1:
            return None
        return self.scales[:, 0].repeat_interleave(self.block[0])[: len(self.values)]


class Nvfp4Blocks(NamedTuple):
    """A matrix [N, K]: codes uint8 [N, K] (low halves), scales float8 [N, K/16], scale fp32 []."""

    codes: torch.Tensor
    scales: torch.Tensor
    scale: torch.Tensor

    def dequantize(self) -> torch.Tensor:
        """The matrix as an engine sees it, fp32 [N, K]."""
        values = E2M1[(self.codes & 7).long()]
        values = torch.where(self.codes >= 8, -values, values)
        steps = (self.scales.float() * self.scale).repeat_interleave(NVFP4_BLOCK, 1)
        return values * steps

    def integers(self) -> IntegerGrid:
        """The same numbers as eight-bit integers: E2M1 counts in halves, up to twelve."""
        return integers_of_e2m1(self.codes, self.scales.float() * self.scale, NVFP4_BLOCK)


Matrix = IntegerGrid | Fp8Matrix | Nvfp4Blocks


def integers_of_e2m1(codes: torch.Tensor, scales: torch.Tensor, group_size: int) -> IntegerGrid:
    """E2M1 codes uint8 [N, K] with fp32 scales [N, groups], as eight-bit integers."""
    halves = (2 * E2M1).to(torch.uint8)
    by_code = torch.cat([_BYTE_MIDDLE + halves, _BYTE_MIDDLE - halves])
    return IntegerGrid(8, group_size, by_code[codes.int()], scales / 2)


def joined_grids(parts: Sequence[IntegerGrid]) -> IntegerGrid | None:
    """The rows of several grids as one; None where their formats differ, or expect own inputs."""
    first = parts[0]
    for one in parts:
        same = (one.bits, one.group_size, one.zero_points is None)
        if same != (first.bits, first.group_size, first.zero_points is None):
            return None
        if one.order is not None or one.column_factors is not None:
            return None
    zeros = [one.zero_points for one in parts if one.zero_points is not None]
    return replace(
        first,
        levels=torch.cat([one.levels for one in parts]),
        scales=torch.cat([one.scales for one in parts]),
        zero_points=torch.cat(zeros) if zeros else None,
    )


def input_order(groups: torch.Tensor, group_size: int) -> torch.Tensor | None:
    """An order of columns int64 [K] in which those of a group are neighbors.

    None where that cannot be: a group other than the last has fewer or more columns than the rest.
    """
    order = groups.argsort(stable=True)
    in_order = torch.arange(len(groups)) // group_size
    return order if torch.equal(groups[order], in_order) else None


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _narrowed(scales: torch.Tensor) -> torch.Tensor:
    narrow = scales.half()
    return narrow if torch.equal(narrow.float(), scales) else scales
