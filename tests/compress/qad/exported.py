"""The matrices of a bundle, to compare with those of the student that it was exported from."""

from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch.nn.functional import pad

from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import Int4, Int8


def blocks(matrix: torch.Tensor, group_size: int) -> torch.Tensor:
    """[rows, blocks, group_size], zeros at the end."""
    whole = pad(matrix, (0, -matrix.shape[1] % group_size))
    return whole.view(len(whole), -1, group_size)


def stored(bundle: Path, group: str, shape: torch.Size, precision: Int4 | Int8) -> torch.Tensor:
    """A group's matrix as the graph's own tensors make it; of experts, one below the other."""
    tensors = ir.load(bundle / "model.onnx").graph.initializers
    rows, columns = shape

    def read(part: str) -> torch.Tensor:
        value = tensors[f"{group}.{part}"].const_value
        assert value is not None
        return torch.from_numpy(value.numpy().copy()).view(rows, -1)

    def unpacked(packed: torch.Tensor) -> torch.Tensor:
        if isinstance(precision, Int8):
            return packed
        return torch.stack([packed & 15, packed >> 4], -1).flatten(1)

    scales = read("scales").float()[..., None]
    levels = unpacked(read("levels")).view(rows, -1, precision.group_size).float()
    zeros = torch.tensor(8.0 if isinstance(precision, Int4) else 128.0)
    if not precision.symmetric:
        zeros = unpacked(read("zero_points"))[:, : scales.shape[1], None].float()
    return ((levels - zeros) * scales).flatten(1)[:, :columns]


def exported_alike(
    bundle: Path, student: Weights, precision: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """By group, which blocks [rows, blocks] of the bundle are the checkpoint's bit for bit."""
    found = {}
    for group, one in precision.items():
        matrix = student.matrix(group)
        ours = blocks(stored(bundle, group, matrix.shape, one), one.group_size)
        found[group] = (ours == blocks(matrix, one.group_size)).all(-1)
    return found
