"""Checkpoints of NVIDIA's Model Optimizer.

- FP8: `weight` E4M3, `weight_scale` of the matrix, a channel or a block.
- NVFP4: `weight` uint8 of two codes, `weight_scale` E4M3, `weight_scale_2` of the matrix.
- INT4 AWQ: `weight` uint8 [N/2, K] of two rows in a byte, signed, `weight_scale` [N, K/g].
- INT8: `weight` int8, `weight_scale` [N].

`pre_quant_scale` [K] multiplies the inputs, where AWQ or SmoothQuant could not fold it away.
"""

from typing import TYPE_CHECKING

from edgelm.checkpoint.quantized.formats.fp8 import fp8_matrix
from edgelm.checkpoint.quantized.fp4 import nvfp4_matrix
from edgelm.checkpoint.quantized.integers import (
    declared_integers,
    integer_grid,
    integer_precision,
)
from edgelm.checkpoint.quantized.packed import FLOATS, PackedMatrix, Parts
from edgelm.checkpoint.quantized.settings import Settings
from edgelm.errors import BadCheckpoint
from edgelm.quantize.precision import Fp8, Nvfp4, WeightPrecision

if TYPE_CHECKING:
    import torch

    from edgelm.quantize.grids import Inputs, Matrix

_REFUSED = ("nvfp4_svd", "mxfp8", "w4a8_mxfp4_fp8", "mxfp4", "w4a8_awq")


class ModelOpt:
    """Reads matrices of a Model Optimizer checkpoint.

    Raises:
        BadCheckpoint: an algorithm that is not read.
    """

    name = "ModelOpt"
    parts = frozenset(
        {"weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "weight_scale_inv"}
    )

    def __init__(self, settings: Settings) -> None:
        algorithm = str(settings.values.get("quant_algo", "")).lower()
        if algorithm in _REFUSED:
            raise settings.wrong("quant_algo", algorithm, "FP8, NVFP4, W4A16_AWQ or W8A8_SQ")
        self.declared = _declared(algorithm, settings.integer("group_size"))

    def matrix(self, parts: Parts) -> PackedMatrix:
        """The matrix of a module, by the parts that it has."""
        kind = parts.dtype("weight")
        if kind == "F8_E4M3":
            return self._without_factors(parts, fp8_matrix(parts, self.name, "weight_scale"))
        if kind == "I8":
            return self._int8(parts)
        parts.matrix("weight", ("U8",))
        if "weight_scale_2" in parts and parts.dtype("weight_scale") == "F8_E4M3":
            found = nvfp4_matrix(parts, self.name, "weight", "weight_scale_2", divides=False)
            return self._without_factors(parts, found)
        return self._int4(parts)

    def _without_factors(self, parts: Parts, matrix: PackedMatrix) -> PackedMatrix:
        if "pre_quant_scale" in parts:
            raise BadCheckpoint(
                f"{parts.paths[0]}: {parts.module} has a pre_quant_scale and the format "
                f"{matrix.format}, a combination that is not supported; quantize the model again "
                "with plain NVFP4 or FP8"
            )
        return matrix

    def _int8(self, parts: Parts) -> PackedMatrix:
        rows, columns = parts.matrix("weight", ("I8",))
        parts.expect("weight_scale", FLOATS, (rows,))
        self._check_factors(parts, columns)

        def read() -> "Matrix":
            import torch

            return integer_grid(
                parts.tensor("weight").view(torch.uint8) + 128,  # wraps
                parts.floats("weight_scale")[:, None],
                None,
                bits=8,
                group_size=columns,
                column_factors=_factors(parts),
            )

        return PackedMatrix(
            (rows, columns),
            f"{self.name}, 8 bits",
            parts.paths,
            read,
            lambda: _precision(parts, 8, columns, columns),
            8,
            lambda: _inputs(parts),
        )

    def _int4(self, parts: Parts) -> PackedMatrix:
        half, columns = parts.matrix("weight", ("U8",))
        rows = 2 * half
        if "weight_scale_2" in parts:
            raise parts.wrong("weight_scale_2", "is used with four-bit integers (W4A8)")
        _, groups = parts.matrix("weight_scale", FLOATS)
        parts.expect("weight_scale", FLOATS, (rows, groups))
        if columns % groups:
            raise parts.wrong("weight_scale", f"has {groups} groups of {columns} inputs")
        self._check_factors(parts, columns)
        size = columns // groups

        def read() -> "Matrix":
            import torch

            packed = parts.tensor("weight")
            signed = torch.stack([packed & 0xF, packed >> 4], 1).flatten(0, 1)
            return integer_grid(
                signed ^ 8,  # two's complement as levels around 8
                parts.floats("weight_scale"),
                None,
                bits=4,
                group_size=size,
                column_factors=_factors(parts),
            )

        return PackedMatrix(
            (rows, columns),
            f"{self.name}, 4 bits",
            parts.paths,
            read,
            lambda: _precision(parts, 4, size, columns),
            4,
            lambda: _inputs(parts),
        )

    def _check_factors(self, parts: Parts, columns: int) -> None:
        if "pre_quant_scale" in parts:
            parts.expect("pre_quant_scale", FLOATS, (columns,))


def _declared(algorithm: str, group_size: int | None) -> WeightPrecision | None:
    if "nvfp4" in algorithm:
        return Nvfp4()
    if "fp8" in algorithm:
        return None if "pb" in algorithm else Fp8()
    return declared_integers(4 if "w4" in algorithm else 8, group_size, symmetric=True)


def _precision(parts: Parts, bits: int, group_size: int, columns: int) -> WeightPrecision | None:
    factors = _factors(parts)
    if factors is not None and not bool((factors > 0).all()):
        return None
    return integer_precision(bits, group_size, columns, symmetric=True)


def _inputs(parts: Parts) -> "Inputs | None":
    from edgelm.quantize.grids import Inputs

    factors = _factors(parts)
    if factors is None or not bool((factors > 0).all()):
        return None
    return Inputs(factors=factors)


def _factors(parts: Parts) -> "torch.Tensor | None":
    """What inputs are multiplied by, if not by ones."""
    if "pre_quant_scale" not in parts:
        return None
    factors = parts.floats("pre_quant_scale")
    return None if bool((factors == 1).all()) else factors
