"""The quantized matrices of a GGUF file, whose levels are kept where one of edgelm's formats can.

A stack of experts is one matrix of all rows; both parts of a gate and up must have the same type.
"""

from typing import TYPE_CHECKING

from edgelm.checkpoint.gguf.blocks import GRIDS, MXFP4, level_bits, mxfp4_codes, read_levels
from edgelm.checkpoint.gguf.layout.made_tensor import Made, in_places
from edgelm.checkpoint.gguf.layout.orders import Orders
from edgelm.checkpoint.gguf.stored_tensor import quantized_rows
from edgelm.checkpoint.quantized.packed import Levels, PackedMatrix
from edgelm.quantize.precision import Int4, Int8, Mxfp4

if TYPE_CHECKING:
    import torch


def packed_matrix(made: Made, orders: Orders, values: Levels) -> PackedMatrix:
    """A matrix or a stack of some.

    Args:
        made: quantized.
        orders: of rows and columns.
        values: what to read where no format holds the levels.
    """
    from gguf import GGMLQuantizationType

    kinds = list(dict.fromkeys(part.info.ggml_type for part in made.parts))
    precision = _precision(made, orders, kinds)

    def read() -> Levels:
        if precision is None:
            return values
        if isinstance(precision, Mxfp4):
            return _experts(made, orders)
        return _grid(made, orders, precision)

    return PackedMatrix(
        made.shape,
        f"GGUF, {' and '.join(GGMLQuantizationType(kind).name for kind in kinds)}",
        tuple(dict.fromkeys(part.part.path for part in made.parts)),
        read,
        lambda: precision,
        max(map(level_bits, kinds)),
    )


def _precision(made: Made, orders: Orders, kinds: list[int]) -> Int4 | Int8 | Mxfp4 | None:
    if len(kinds) > 1:
        return None
    [kind] = kinds
    if made.form == "stack" and made.alternating:
        return Mxfp4() if kind == MXFP4 else None
    precision = GRIDS.get(kind)
    if precision is None or not orders.moves_columns(made.name):
        return precision
    return precision if orders.value_dim % precision.group_size == 0 else None


def _grid(made: Made, orders: Orders, precision: Int4 | Int8) -> Levels:
    import torch

    from edgelm.checkpoint.quantized.integers import integer_grid

    size = precision.group_size
    parts = [read_levels(quantized_rows(part), part.info.ggml_type) for part in made.parts]
    rows, columns = orders.rows(made), orders.columns(made)
    groups = None if columns is None else columns[::size] // size
    return integer_grid(
        torch.from_numpy(in_places([part.levels for part in parts], rows, columns)),
        torch.from_numpy(in_places([part.scales for part in parts], rows, groups)),
        None,
        bits=4 if isinstance(precision, Int4) else 8,
        group_size=size,
    )


def _experts(made: Made, orders: Orders) -> Levels:
    from edgelm.checkpoint.quantized.formats.mxfp4 import Experts

    experts, inputs, outputs = made.shape

    def codes() -> "tuple[torch.Tensor, torch.Tensor]":
        import torch

        parts = [quantized_rows(part) for part in made.parts]
        found = mxfp4_codes(in_places(parts, orders.rows(made), None))
        return (
            torch.from_numpy(found.codes).view(experts, outputs, -1, found.codes.shape[-1]),
            torch.from_numpy(found.exponents.copy()).view(experts, outputs, -1),
        )

    return Experts((experts, inputs, outputs), codes)
