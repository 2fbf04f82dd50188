"""AWQ as AutoAWQ writes it, layout GEMM (arXiv 2306.00978).

`qweight` int32 [K, N/8] holds eight output channels in a word, in the order 0, 2, 4, 6, 1, 3, 5, 7
of its nibbles; `qzeros` int32 [K/g, N/8] likewise; `scales` [K/g, N]. A weight is
`(level - zero) * scale`.
"""

from typing import TYPE_CHECKING

from edgelm.checkpoint.quantized.integers import (
    declared_integers,
    integer_grid,
    integer_precision,
)
from edgelm.checkpoint.quantized.packed import FLOATS, PackedMatrix, Parts
from edgelm.checkpoint.quantized.settings import Settings
from edgelm.quantize.precision import WeightPrecision

if TYPE_CHECKING:
    import torch

    from edgelm.quantize.grids import Matrix

_PER_WORD = 8
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble of every channel


class Awq:
    """Reads matrices of an AWQ checkpoint.

    Raises:
        BadCheckpoint: another layout than GEMM, or another number of bits than 4.
    """

    name = "AWQ"
    parts = frozenset({"qweight", "qzeros", "scales"})

    def __init__(self, settings: Settings) -> None:
        settings.integer("bits", "w_bit", choices=(4,))
        settings.text("version", "format", choices=("gemm", "exllama", "ipex"), default="gemm")
        if not settings.flag("zero_point", default=True):
            raise settings.wrong("zero_point", False, "true")
        self.group_size = settings.integer("group_size", "q_group_size")
        self.declared: WeightPrecision | None = declared_integers(4, self.group_size)

    def matrix(self, parts: Parts) -> PackedMatrix:
        """The matrix of a module."""
        columns, packed = parts.matrix("qweight", ("I32",))
        groups, rows = parts.matrix("scales", FLOATS)
        parts.expect("qzeros", ("I32",), (groups, packed))
        if rows != packed * _PER_WORD:
            raise parts.wrong("scales", f"has {rows} channels, expected {packed * _PER_WORD}")
        wanted = self.group_size or -1
        size = columns if wanted < 0 else wanted
        if size * groups != columns:
            raise parts.wrong(
                "scales", f"has {groups} groups of {columns} inputs, expected groups of {size}"
            )

        def zeros() -> "torch.Tensor":
            return _unpacked(parts.tensor("qzeros")).T.contiguous()

        def read() -> "Matrix":
            scales = parts.floats("scales").T.contiguous()
            levels = _unpacked(parts.tensor("qweight")).T.contiguous()
            return integer_grid(levels, scales, zeros(), bits=4, group_size=size)

        def precision() -> WeightPrecision:
            middle = bool((zeros() == 8).all())
            return integer_precision(4, size, columns, symmetric=middle)

        return PackedMatrix((rows, columns), "AWQ, 4 bits", parts.paths, read, precision)


def _unpacked(packed: "torch.Tensor") -> "torch.Tensor":
    """uint8 [rows, 8 n] of int32 [rows, n]."""
    from edgelm.checkpoint.quantized.unpack import nibbles

    values: torch.Tensor = nibbles(packed).unflatten(1, (-1, _PER_WORD))[..., list(_PLACES)]
    return values.flatten(1)
