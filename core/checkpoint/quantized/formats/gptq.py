"""GPTQ as AutoGPTQ and GPTQModel write it (arXiv 2210.17323).

`qweight` int32 [K * bits / 32, N] is a stream of bits along the inputs, `qzeros` int32
[groups, N * bits / 32] one along the outputs, `scales` [groups, N]; `g_idx` int32 [K] is the group
of every input, which with act-order (`desc_act`) is not that of its neighbors. Version 1 stores
zero points less one, version 2 (`checkpoint_format: gptq_v2`) as they are.
"""

from typing import TYPE_CHECKING

from edgelm.checkpoint.quantized.integers import (
    declared_integers,
    group_order,
    integer_grid,
    integer_precision,
    order_inputs,
)
from edgelm.checkpoint.quantized.packed import FLOATS, PackedMatrix, Parts
from edgelm.checkpoint.quantized.settings import Settings
from edgelm.quantize.precision import WeightPrecision

if TYPE_CHECKING:
    import torch

    from edgelm.quantize.grids import Matrix

_BITS = (2, 3, 4, 8)


class Gptq:
    """Reads matrices of a GPTQ checkpoint.

    Raises:
        BadCheckpoint: another layout, or another number of bits.
    """

    name = "GPTQ"
    parts = frozenset({"qweight", "qzeros", "scales", "g_idx"})

    def __init__(self, settings: Settings) -> None:
        self.bits = settings.integer("bits", choices=_BITS)
        self.group_size = settings.integer("group_size")
        self.overrides = bool(settings.section("dynamic").values)
        layout = settings.text(
            "checkpoint_format", "format", choices=("gptq", "gptq_v2"), default="gptq"
        )
        settings.text("pack_dtype", choices=("int32",), default="int32")
        self.declared: WeightPrecision | None = declared_integers(
            self.bits or 4, self.group_size, symmetric=settings.flag("sym", default=False)
        )
        self.zero_offset = 0 if layout == "gptq_v2" else 1

    def matrix(self, parts: Parts) -> PackedMatrix:
        """The matrix of a module."""
        words, rows = parts.matrix("qweight", ("I32",))
        groups, _ = parts.matrix("scales", FLOATS)
        parts.expect("scales", FLOATS, (groups, rows))
        bits = self._bits(parts, rows)
        columns = words * 32 // bits
        if "g_idx" in parts:
            (columns,) = parts.expect("g_idx", ("I32", "I64"), (columns,))
        parts.expect("qzeros", ("I32",), (groups, -(-rows * bits // 32)))
        size = self._group_size(parts, groups, columns)

        def order() -> "tuple[torch.Tensor, bool] | None":
            if "g_idx" not in parts:
                return None
            try:
                return group_order(parts.tensor("g_idx"), groups, size)
            except ValueError as error:
                raise parts.wrong("g_idx", f"holds {error}") from None

        def zeros() -> "torch.Tensor":
            from edgelm.checkpoint.quantized.unpack import along_rows

            stored = along_rows(parts.tensor("qzeros"), bits, rows)
            points: torch.Tensor = (stored + self.zero_offset) & (2**bits - 1)
            return points.T.contiguous()

        def read() -> "Matrix":
            from edgelm.checkpoint.quantized.unpack import along_rows

            levels = along_rows(parts.tensor("qweight").T, bits, columns)
            scales, found = parts.floats("scales").T.contiguous(), order()
            return integer_grid(
                levels,
                scales,
                zeros(),
                bits=bits,
                group_size=size,
                order=None if found is None or found[1] else found[0],
            )

        def precision() -> WeightPrecision | None:
            found = order()
            if found is not None and not found[1] and order_inputs(found, size) is None:
                return None
            symmetric = bool((zeros() == 1 << (bits - 1)).all())
            return integer_precision(bits, size, columns, symmetric=symmetric)

        title = f"GPTQ, {bits} bits"
        return PackedMatrix(
            (rows, columns),
            title,
            parts.paths,
            read,
            precision,
            4 if bits <= 4 else 8,
            lambda: order_inputs(order(), size),
        )

    def _bits(self, parts: Parts, rows: int) -> int:
        """Of a module: the configuration's, unless it has overrides by module."""
        _, words = parts.matrix("qzeros", ("I32",))
        found = [bits for bits in _BITS if -(-rows * bits // 32) == words]
        if self.bits in found and not self.overrides:
            return self.bits
        if len(found) != 1 or (self.bits is not None and not self.overrides):
            expected = self.bits or "2, 3, 4 or 8"
            raise parts.wrong("qzeros", f"has {words} words per group, expected {expected} bits")
        return found[0]

    def _group_size(self, parts: Parts, groups: int, columns: int) -> int:
        wanted = -1 if self.group_size is None else self.group_size
        size = columns if wanted <= 0 else wanted
        if -(-columns // size) == groups:
            return size
        if self.overrides or self.group_size is None:
            return -(-columns // groups)
        raise parts.wrong(
            "scales", f"has {groups} groups of {columns} inputs, expected groups of {size}"
        )
