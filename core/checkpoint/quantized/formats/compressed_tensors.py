"""compressed-tensors, the format of llm-compressor and vLLM.

- `pack-quantized`: `weight_packed` int32 [N, K * bits / 32] of levels around the middle,
  `weight_scale` [N, groups], `weight_zero_point` int32 packed along the rows, `weight_shape`,
  `weight_g_idx` [K] with act-order by group.
- `int-quantized` and `naive-quantized`: `weight` int8 [N, K].
- `float-quantized`: `weight` E4M3 [N, K], one scale for the matrix, a channel or a block.
- `nvfp4-pack-quantized`: see edgelm.checkpoint.quantized.fp4; its global scale divides.

Quantized inputs are a matter of speed in its runtimes: weights alone are read here.
"""

import struct
from typing import TYPE_CHECKING

from edgelm.checkpoint.quantized.formats.fp8 import fp8_matrix
from edgelm.checkpoint.quantized.fp4 import MXFP4_BLOCK, mxfp4_matrix, nvfp4_matrix
from edgelm.checkpoint.quantized.integers import (
    declared_integers,
    group_order,
    integer_grid,
    integer_precision,
    order_inputs,
)
from edgelm.checkpoint.quantized.packed import FLOATS, PackedMatrix, Parts
from edgelm.checkpoint.quantized.settings import Settings
from edgelm.quantize.precision import NVFP4_BLOCK, Fp8, Int8, Nvfp4, WeightPrecision

if TYPE_CHECKING:
    import torch

    from edgelm.quantize.grids import Matrix

_FORMATS = (
    *("pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mixed-precision", "dense"),
)
_PACKED_BITS = (2, 4, 8)  # with others a word has holes or not, by the version that wrote it


class CompressedTensors:
    """Reads matrices of a compressed-tensors checkpoint.

    Raises:
        BadCheckpoint: a format, a strategy or a transform that is not read.
    """

    name = "compressed-tensors"
    parts = frozenset(
        {
            *("weight_packed", "weight_scale", "weight_zero_point", "weight_shape"),
            *("weight_g_idx", "weight_global_scale", "input_scale", "input_zero_point"),
            *("input_global_scale", "output_scale"),
        }
    )

    def __init__(self, settings: Settings) -> None:
        self.format = settings.text("format", choices=_FORMATS, default="dense")
        sparsity = settings.section("sparsity_config").values.get("format", "dense")
        if sparsity != "dense":
            raise settings.wrong("sparsity_config, format", sparsity, "dense")
        if settings.section("transform_config").values.get("config_groups"):
            raise settings.wrong(
                "transform_config", "a rotation of inputs while the model runs", "none"
            )
        self.group_sizes: set[int] = set()
        self.declared: WeightPrecision | None = None
        groups = settings.section("config_groups")
        for name in groups.values:
            weights = groups.section(name).section("weights")
            weights.text(
                "strategy",
                choices=("tensor", "channel", "group", "block", "tensor_group"),
                default="tensor",
            )
            if size := weights.integer("group_size"):
                self.group_sizes.add(size)
            self.declared = self.declared or _declared(weights)

    def matrix(self, parts: Parts) -> PackedMatrix:
        """The matrix of a module, by the parts that it has."""
        if "weight_packed" not in parts:
            return self._unpacked(parts)
        if parts.dtype("weight_packed") == "I32":
            return self._integers(parts)
        if "weight_global_scale" in parts:
            return nvfp4_matrix(
                parts, self.name, "weight_packed", "weight_global_scale", divides=True
            )
        return mxfp4_matrix(parts, self.name, "weight_packed", "weight_scale")

    def _unpacked(self, parts: Parts) -> PackedMatrix:
        if parts.dtype("weight") == "F8_E4M3":
            return fp8_matrix(parts, self.name, "weight_scale")
        rows, columns = parts.matrix("weight", ("I8",))
        groups = _groups(parts, rows)
        if "weight_zero_point" in parts:
            parts.expect("weight_zero_point", ("I8",), parts.tensors["weight_scale"].shape)
        size = self._group_size(parts, groups, columns)

        def zeros() -> "torch.Tensor | None":
            if "weight_zero_point" not in parts:
                return None
            return _unsigned(parts.tensor("weight_zero_point").view(-1, groups)).expand(rows, -1)

        def read() -> "Matrix":
            return integer_grid(
                _unsigned(parts.tensor("weight")),
                _scales(parts, rows, groups),
                zeros(),
                bits=8,
                group_size=size,
            )

        def precision() -> WeightPrecision:
            found = zeros()
            symmetric = found is None or bool((found == 128).all())
            return integer_precision(8, size, columns, symmetric=symmetric)

        title = f"{self.name}, 8 bits"
        return PackedMatrix((rows, columns), title, parts.paths, read, precision, 8)

    def _integers(self, parts: Parts) -> PackedMatrix:
        rows, words = parts.matrix("weight_packed", ("I32",))
        parts.expect("weight_shape", ("I64", "I32"), (2,))
        columns = _stored_shape(parts)[1]
        if _stored_shape(parts)[0] != rows:
            raise parts.wrong("weight_shape", f"holds {_stored_shape(parts)}, not {rows} rows")
        bits = next((one for one in _PACKED_BITS if -(-columns * one // 32) == words), None)
        if bits is None:
            raise parts.wrong(
                "weight_packed",
                f"has {words} words for {columns} inputs, expected 2, 4 or 8 bits each",
            )
        groups = _groups(parts, rows)
        if "weight_zero_point" in parts:
            parts.expect("weight_zero_point", ("I32",), (-(-rows * bits // 32), groups))
        if "weight_g_idx" in parts:
            parts.expect("weight_g_idx", ("I32", "I64"), (columns,))
        size = self._group_size(parts, groups, columns)

        def order() -> "tuple[torch.Tensor, bool] | None":
            if "weight_g_idx" not in parts:
                return None
            try:
                return group_order(parts.tensor("weight_g_idx"), groups, size)
            except ValueError as error:
                raise parts.wrong("weight_g_idx", f"holds {error}") from None

        def zeros() -> "torch.Tensor | None":
            from edgelm.checkpoint.quantized.unpack import along_rows

            if "weight_zero_point" not in parts:
                return None
            return along_rows(parts.tensor("weight_zero_point").T, bits, rows).T.contiguous()

        def read() -> "Matrix":
            from edgelm.checkpoint.quantized.unpack import along_rows

            found = order()
            return integer_grid(
                along_rows(parts.tensor("weight_packed"), bits, columns),
                _scales(parts, rows, groups),
                zeros(),
                bits=bits,
                group_size=size,
                order=None if found is None or found[1] else found[0],
            )

        def precision() -> WeightPrecision | None:
            found, points = order(), zeros()
            if found is not None and not found[1] and order_inputs(found, size) is None:
                return None
            symmetric = points is None or bool((points == 1 << (bits - 1)).all())
            return integer_precision(bits, size, columns, symmetric=symmetric)

        return PackedMatrix(
            (rows, columns),
            f"{self.name}, {bits} bits",
            parts.paths,
            read,
            precision,
            4 if bits <= 4 else 8,
            lambda: order_inputs(order(), size),
        )

    def _group_size(self, parts: Parts, groups: int, columns: int) -> int:
        if groups == 1:
            return columns
        found = [size for size in self.group_sizes if -(-columns // size) == groups]
        if len(found) == 1:
            return found[0]
        if not self.group_sizes and columns % groups == 0:
            return columns // groups
        raise parts.wrong(
            "weight_scale",
            f"has {groups} groups of {columns} inputs, expected groups of "
            f"{' or '.join(map(str, sorted(self.group_sizes)))}",
        )


def _declared(weights: Settings) -> WeightPrecision | None:
    bits, size = weights.integer("num_bits") or 8, weights.integer("group_size")
    if weights.values.get("type") == "float":
        if bits == 4:
            return Nvfp4() if size == NVFP4_BLOCK else Int8(MXFP4_BLOCK)
        return None if weights.values.get("strategy") == "block" else Fp8()
    return declared_integers(bits, size, symmetric=weights.flag("symmetric", default=True))


def _groups(parts: Parts, rows: int) -> int:
    """Groups of a row, from scales [N, groups], [N, 1], [N] or [1]."""
    shape = parts.expect("weight_scale", FLOATS)
    if shape in ((), (1,), (1, 1), (rows,)):
        return 1
    if len(shape) != 2 or shape[0] != rows:
        raise parts.wrong("weight_scale", f"has shape {list(shape)}, expected {rows} rows")
    return shape[1]


def _scales(parts: Parts, rows: int, groups: int) -> "torch.Tensor":
    return parts.floats("weight_scale").reshape(-1, groups).expand(rows, groups).contiguous()


def _unsigned(levels: "torch.Tensor") -> "torch.Tensor":
    """Signed bytes as levels around 128."""
    import torch

    return levels.contiguous().view(torch.uint8) + 128  # wraps


def _stored_shape(parts: Parts) -> tuple[int, int]:
    stored = parts.tensors["weight_shape"]
    with stored.path.open("rb") as file:
        file.seek(stored.start)
        data = file.read(stored.end - stored.start)
    rows, columns = struct.unpack("<2q" if stored.dtype == "I64" else "<2i", data)
    if columns <= 0:
        raise parts.wrong("weight_shape", f"holds {[rows, columns]}")
    return rows, columns
