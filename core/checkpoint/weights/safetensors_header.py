"""Read the header of a safetensors file, checked against the size of the file.

Format: 8 bytes of length, JSON, data. Each tensor has a type, a shape and a byte range; the ranges
cover the data without gaps or overlaps.
"""

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import MAX_BYTES, parse_json_object, shown
from edgelm.files.lfs_pointer import check_not_pointer

_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
_MAX_DIMENSIONS = 16
_POINTER_BYTES = 200


class StoredTensor(NamedTuple):
    """A tensor's file, type, shape and bytes: `start` and `end` are positions in the file.

    A stack has no bytes of its own but `parts`, matrices that follow each other along its rows.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    parts: "tuple[StoredTensor, ...]" = ()


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file, by its stored name.

    Raises:
        BadCheckpoint: the file is truncated, unreadable or not a safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            check_not_pointer(path, file.read(_POINTER_BYTES))
            file.seek(0)
            data = file.read(_header_length(file.read(8), size, path))
    except OSError as error:
        raise BadCheckpoint(f"{path} cannot be read: {error.strerror}") from None
    first = 8 + len(data)
    entries = _parsed(data, path)
    _check_metadata(path, entries.pop("__metadata__", {}))
    tensors = {name: _tensor(path, name, entry, first) for name, entry in entries.items()}
    _check_ranges(path, tensors, first, size)
    return tensors


def _header_length(prefix: bytes, size: int, path: Path) -> int:
    try:
        (length,) = struct.unpack("<Q", prefix)
    except struct.error:
        raise _unreadable(path, f"it has {size} bytes") from None
    if length > size - 8:
        raise _unreadable(path, f"a header of {length:,} bytes is longer than the file")
    if length > MAX_BYTES:
        raise _unreadable(path, f"a header of {length:,} bytes, expected at most {MAX_BYTES:,}")
    return int(length)


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
    try:
        return parse_json_object(data, "its header")
    except BadCheckpoint as error:
        raise _unreadable(path, str(error)) from None


def _check_metadata(path: Path, metadata: Any) -> None:
    """As the safetensors package does, which refuses the file otherwise."""
    if not isinstance(metadata, dict) or not all(isinstance(one, str) for one in metadata.values()):
        raise BadCheckpoint(
            f"{path} is damaged: __metadata__ is {shown(metadata)}, expected an object of texts; "
            "download it again"
        )


def _unreadable(path: Path, reason: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path} is truncated or not a safetensors file ({reason}); download it again"
    )


def _tensor(path: Path, name: str, entry: Any, first: int) -> StoredTensor:
    if not isinstance(entry, dict):
        raise _damaged(path, name, "entry", entry, "dtype, shape and data_offsets")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _damaged(path, name, "dtype", dtype, f"one of {', '.join(_BITS)}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _damaged(path, name, "shape", shape, f"at most {_MAX_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, name, "data_offsets", offsets, "the first and the last byte position")
    bits = math.prod(shape) * _BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        expected = f"{shown(bits // 8)} bytes of {dtype} for the shape {shown(shape)}"
        raise _damaged(path, name, "data_offsets", offsets, expected)
    start, end = (first + at for at in offsets)
    return StoredTensor(path, name, dtype, tuple(shape), start, end)


def _damaged(path: Path, name: str, field: str, value: Any, expected: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path} is damaged: the {field} of {shown(name)} is {shown(value)}, expected {expected}; "
        "download it again"
    )


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether a value is a list of sizes; true and false are integers to Python."""
    return isinstance(value, list) and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**63 for one in value
    )


def _check_ranges(path: Path, tensors: dict[str, StoredTensor], first: int, size: int) -> None:
    """Raise BadCheckpoint unless the tensors cover each byte of the data once."""
    at = first
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != at:
            raise BadCheckpoint(
                f"{path} is damaged: {shown(name)} begins at byte {tensor.start - first:,} of the "
                f"data, expected {at - first:,} (data_offsets overlap or leave a gap); download it "
                "again"
            )
        at = tensor.end
    if size < at:
        raise BadCheckpoint(f"{path} is truncated: {size} bytes of {at}; download it again")
    if size > at:
        raise BadCheckpoint(
            f"{path} is damaged: {size - at:,} bytes follow the last tensor; download it again"
        )
