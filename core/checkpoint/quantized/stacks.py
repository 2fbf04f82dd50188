"""Experts that a method quantized one by one, as the one matrix that the decoder stacks them to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgelm.checkpoint.quantized.packed import PackedMatrix
from edgelm.checkpoint.weights.safetensors_header import StoredTensor
from edgelm.errors import BadCheckpoint
from edgelm.quantize.precision import WeightPrecision

if TYPE_CHECKING:
    import torch

    from edgelm.quantize.grids import IntegerGrid


def with_stacks(
    packed: Mapping[str, PackedMatrix], stored: Mapping[str, StoredTensor]
) -> dict[str, PackedMatrix]:
    """The quantized matrices, and each stack of some as one, by the name of its entry.

    Raises:
        BadCheckpoint: of one stack some matrices are quantized and others are not.
    """
    found = dict(packed)
    for entry in stored.values():
        parts = [packed[one.name] for one in entry.parts if one.name in packed]
        if not parts:
            continue
        if len(parts) < len(entry.parts):
            raise BadCheckpoint(
                f"{entry.path}: of {entry.name} {len(parts)} of {len(entry.parts)} experts' "
                "matrices are quantized, expected all of a layer or none"
            )
        found[entry.name] = _stacked(parts, entry.shape)
    return found


def _stacked(parts: list[PackedMatrix], shape: tuple[int, ...]) -> PackedMatrix:
    """Matrices below each other; their levels are kept where all are integers of one format."""
    paths = tuple(dict.fromkeys(path for part in parts for path in part.paths))

    def precision() -> WeightPrecision | None:
        found = {part.precision if part.inputs is None else None for part in parts}
        return found.pop() if len(found) == 1 else None

    bits = max(part.bits for part in parts)
    return PackedMatrix(shape, parts[0].format, paths, lambda: _read(parts), precision, bits)


@dataclass(frozen=True)
class Stack:
    """Matrices that cannot be one grid, below each other."""

    parts: list[PackedMatrix]

    def dequantize(self) -> "torch.Tensor":
        """All of them, fp32 [rows, K]."""
        import torch

        return torch.cat([part.dequantize() for part in self.parts])


def _read(parts: list[PackedMatrix]) -> "IntegerGrid | Stack":
    from edgelm.quantize.grids import IntegerGrid, joined_grids

    grids = [one for one in (part.read() for part in parts) if isinstance(one, IntegerGrid)]
    joined = joined_grids(grids) if len(grids) == len(parts) else None
    return Stack(parts) if joined is None else joined
