"""Weights in E4M3: transformers' `fp8` (blocks of 128 x 128), `fbgemm_fp8`, and those of others.

`weight` float8_e4m3fn [N, K] times its scale: one per matrix, per channel [N, 1], or per block
[N / rows, K / columns].
"""

from typing import TYPE_CHECKING

from edgelm.checkpoint.quantized.packed import FLOATS, PackedMatrix, Parts
from edgelm.checkpoint.quantized.settings import Settings
from edgelm.quantize.precision import Fp8, WeightPrecision

if TYPE_CHECKING:
    from edgelm.quantize.grids import Matrix

_SCALES = (*FLOATS, "F8_E8M0")


class FineGrainedFp8:
    """Reads matrices of a checkpoint of transformers' `fp8` and `fbgemm_fp8`.

    Raises:
        BadCheckpoint: blocks that are not two sizes.
    """

    name = "FP8"
    parts = frozenset({"weight_scale_inv", "weight_scale", "input_scale", "activation_scale"})

    def __init__(self, settings: Settings) -> None:
        block = settings.values.get("weight_block_size")
        self.block: tuple[int, int] | None = None
        if block is not None:
            if not (isinstance(block, list | tuple) and len(block) == 2 and _are_sizes(block)):
                raise settings.wrong("weight_block_size", block, "two sizes, e.g. [128, 128]")
            self.block = block[0], block[1]
        self.declared: WeightPrecision | None = None if self.block else Fp8()

    def matrix(self, parts: Parts) -> PackedMatrix:
        """The matrix of a module."""
        scale = "weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"
        return fp8_matrix(parts, self.name, scale, self.block)


def fp8_matrix(
    parts: Parts, title: str, scale: str, block: tuple[int, int] | None = None
) -> PackedMatrix:
    """A matrix in E4M3.

    Args:
        parts: with `weight`.
        title: of the format.
        scale: the part that it is multiplied by.
        block: rows and columns of a block; by default what the shape of the scales says.
    """
    rows, columns = parts.matrix("weight", ("F8_E4M3",))
    shape = tuple(size for size in parts.expect(scale, _SCALES) if size != 1)
    if rows == 1 or columns == 1:
        raise parts.wrong("weight", f"has shape {[rows, columns]}, expected a matrix")
    if not shape:
        height, width = rows, columns
    elif shape == (rows,):
        height, width = 1, columns
    else:
        full = parts.expect(scale, _SCALES)
        full = tuple(size for size in full if size != 1) if len(full) > 2 else full
        height, width = block or _block_of(full, rows, columns)
        if full != (-(-rows // height), -(-columns // width)):
            raise parts.wrong(
                scale,
                f"has shape {list(full)}, expected a scale for each {height} x {width} of the "
                f"{rows} x {columns} weights",
            )

    size = min(height, rows), min(width, columns)

    def read() -> "Matrix":
        from edgelm.quantize.grids import Fp8Matrix

        scales = parts.floats(scale).reshape(-(-rows // height), -(-columns // width))
        return Fp8Matrix(parts.tensor("weight"), scales, size, _input_scale(parts))

    def precision() -> WeightPrecision | None:
        return Fp8() if size[1] == columns else None

    return PackedMatrix((rows, columns), f"{title}, E4M3", parts.paths, read, precision, 8)


def _input_scale(parts: Parts) -> float | None:
    for name in ("input_scale", "activation_scale"):
        if name in parts and parts.tensors[name].shape in ((), (1,)):
            return float(parts.floats(name))
    return None


def _block_of(shape: tuple[int, ...], rows: int, columns: int) -> tuple[int, int]:
    """The block that scales of this shape imply; 128 where rows and columns are not multiples."""
    if len(shape) != 2:
        return 128, 128
    height, width = (-(-size // count) for size, count in zip((rows, columns), shape, strict=True))
    fits = rows % height == 0 and columns % width == 0
    return (height, width) if fits else (128, 128)


def _are_sizes(values: list[object] | tuple[object, ...]) -> bool:
    return all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in values)
