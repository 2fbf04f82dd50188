"""Read a tensor's values, and check that they are finite and the file is unchanged.

torch is imported on the first read.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.checkpoint.weights.safetensors_header import StoredTensor
from edgelm.errors import BadCheckpoint
from edgelm.files.file_range import read_ranges
from edgelm.files.json_files import shown
from edgelm.reasons import reason

if TYPE_CHECKING:
    import torch

_MAX_FLOAT32 = 3.4028234663852886e38
_ROWS = 4096  # that are checked at a time
_TORCH_TYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
    "C64": "complex64",
}


Stamp = tuple[int, int, int, int]


def stamp(path: Path) -> Stamp | None:
    """Values that change when a file is replaced or written to; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_unchanged(path: Path, before: Stamp | None) -> None:
    """Raise BadCheckpoint if a file has changed: results would mix two models."""
    if stamp(path) != before:
        raise BadCheckpoint(
            f"{path} was changed or replaced after it was opened; retry when it is complete"
        )


def read_tensor(stored: StoredTensor) -> "torch.Tensor":
    """A tensor of a safetensors file in its stored type.

    Raises:
        BadCheckpoint: the file was removed, replaced or truncated, or torch has no such type.
    """
    import torch

    if stored.parts:
        return torch.cat([read_tensor(part) for part in stored.parts]).view(stored.shape)
    return _read(stored, [(stored.start, stored.end - stored.start)]).view(stored.shape)


def read_rows(stored: StoredTensor, rows: "torch.Tensor") -> "torch.Tensor":
    """`read_tensor(stored)[rows]` for rows int64 [R] of a matrix, reading only these.

    Raises:
        BadCheckpoint: as `read_tensor`.
    """
    if stored.parts or stored.shape[0] == 0:
        return read_tensor(stored)[rows]
    count, *others = stored.shape
    size = (stored.end - stored.start) // count
    ranges = [
        (stored.start + first * size, (last - first) * size) for first, last in _runs(rows.tolist())
    ]
    return _read(stored, ranges).view(len(rows), *others)


def _runs(rows: list[int]) -> list[tuple[int, int]]:
    """Rows that follow each other, as (first, after the last)."""
    breaks = [at for at, (one, other) in enumerate(pairwise(rows), 1) if other != one + 1]
    return [(rows[a], rows[b - 1] + 1) for a, b in pairwise([0, *breaks, len(rows)]) if b > a]


def _read(stored: StoredTensor, ranges: list[tuple[int, int]]) -> "torch.Tensor":
    """Bytes of a tensor in its type, in one dimension."""
    import torch

    dtype = _torch_type(stored)
    data = torch.empty(sum(count for _, count in ranges), dtype=torch.uint8)
    try:
        read_ranges(stored.path, ranges, data.numpy().data)
    except OSError as error:
        raise BadCheckpoint(
            f"{stored.path}: {shown(stored.name)} cannot be read ({reason(error)}); was the file "
            "changed after it was opened?"
        ) from None
    return data.view(dtype)


def _torch_type(stored: StoredTensor) -> "torch.dtype":
    import torch

    found = getattr(torch, _TORCH_TYPES.get(stored.dtype, ""), None)
    if found is None:
        raise BadCheckpoint(
            f"{stored.path}: {shown(stored.name)} is stored as {stored.dtype}, which PyTorch "
            f"{torch.__version__} does not have; convert the model to BF16"
        )
    return found  # type: ignore[no-any-return]


def check_finite(tensor: "torch.Tensor", what: str) -> None:
    """Raise BadCheckpoint if a tensor has NaN, infinity or numbers beyond the range of fp32.

    One NaN in a weight makes all results NaN, and comparisons with NaN can pass unnoticed.
    """
    if not tensor.numel():
        return
    # Minimum and maximum are NaN if any value is; this needs no extra memory.
    lowest, highest = (float(bound) for bound in tensor.aminmax())
    if lowest >= -_MAX_FLOAT32 and highest <= _MAX_FLOAT32:
        return
    bad = sum(int((~part.float().isfinite()).sum()) for part in tensor.flatten().split(2**20))
    raise BadCheckpoint(
        f"{what} has {bad:,} values of {tensor.numel():,} that are NaN, infinite or too large "
        "for fp32; the model was damaged in training or conversion, download or convert it again"
    )


def check_finite_rows(
    read: "Callable[[torch.Tensor], torch.Tensor]", count: int, what: str
) -> None:
    """`check_finite` for a table with `count` rows, a part at a time: it can exceed the memory."""
    import torch

    for rows in torch.arange(count).split(_ROWS):
        check_finite(read(rows), what)
