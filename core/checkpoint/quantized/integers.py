"""What the formats with integer levels have in common."""

from typing import TYPE_CHECKING

from edgelm.quantize.precision import Int4, Int8

if TYPE_CHECKING:
    import torch

    from edgelm.quantize.grids import Inputs, IntegerGrid


def integer_precision(bits: int, group_size: int, columns: int, *, symmetric: bool) -> Int4 | Int8:
    """The format of a grid whose groups are of neighboring columns."""
    if bits <= 4:
        return Int4(min(group_size, columns), symmetric)
    return Int8(0 if group_size >= columns else group_size, symmetric)


def declared_integers(bits: int, group_size: int | None, *, symmetric: bool = False) -> Int4 | Int8:
    """The format of a configuration's integers; without a size above zero, of whole channels."""
    size = group_size if group_size and group_size > 0 else 0
    # One group of a whole row, whatever its length, is larger than any.
    return Int4(size or 1 << 20, symmetric) if bits <= 4 else Int8(size, symmetric)


def integer_grid(
    levels: "torch.Tensor",
    scales: "torch.Tensor",
    zero_points: "torch.Tensor | None",
    *,
    bits: int,
    group_size: int,
    order: "torch.Tensor | None" = None,
    column_factors: "torch.Tensor | None" = None,
) -> "IntegerGrid":
    """A grid of 2 to 8 bits, in the 4 or 8 that kernels have.

    Args:
        levels: uint8 [N, K].
        scales: fp32 [N, groups].
        zero_points: uint8 [N, groups]; None where all are the middle level.
        bits: of a level.
        group_size: columns of a group.
        order: int64 [K], the group of every column; None where neighbors share a group.
        column_factors: fp32 [K], of the inputs.
    """
    from edgelm.quantize.grids import IntegerGrid

    if zero_points is not None and bool((zero_points == 1 << (bits - 1)).all()):
        zero_points = None
    grid = IntegerGrid(bits, group_size, levels, scales, zero_points, order, column_factors)
    return grid.widened(4 if bits <= 4 else 8)


def order_inputs(found: "tuple[torch.Tensor, bool] | None", group_size: int) -> "Inputs | None":
    """What is done to the inputs of a matrix with this order of groups."""
    from edgelm.quantize.grids import Inputs, input_order

    if found is None or found[1]:
        return None
    order = input_order(found[0], group_size)
    return None if order is None else Inputs(order=order)


def group_order(
    indices: "torch.Tensor", groups: int, group_size: int
) -> "tuple[torch.Tensor, bool]":
    """The group of every column as int64 [K], and whether neighbors share a group.

    Args:
        indices: int32 [K] as stored; -1 for columns in order.
        groups: how many there are; an index beyond is a ValueError.
        group_size: columns of a group.
    """
    import torch

    order = indices.long()
    in_order = torch.arange(len(order)) // group_size
    if bool((order < 0).all()):
        return in_order, True
    if int(order.min()) < 0 or int(order.max()) >= groups:
        raise ValueError(f"{int(order.max())}, expected indices of {groups} groups")
    return order, torch.equal(order, in_order)
