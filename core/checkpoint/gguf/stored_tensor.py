"""One tensor of a GGUF file: its place, its bytes and its values."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgelm.checkpoint.gguf.header import TensorInfo
from edgelm.checkpoint.gguf.parts import GgufPart
from edgelm.errors import BadCheckpoint

F32, F16 = 0, 1  # ggml types that need no dequantizing
FLOATS = (F32, F16, 28, 30)  # with F64 and BF16
_VALUES_AT_ONCE = 1 << 17
_MAX_STACKED = 64


class Stored(NamedTuple):
    """A tensor: its name for messages, the part that contains it, and its place there."""

    name: str
    part: GgufPart
    info: TensorInfo


def unstacked(names: str | None, stored: Stored) -> list[tuple[str, TensorInfo]]:
    """The matrices of a stack, with their places in `names`; a tensor that is no stack as it is."""
    shape, kind, offset = stored.info
    if names is None or len(shape) != 3 or not 0 < shape[0] <= _MAX_STACKED:
        return [(stored.name, stored.info)]
    size = stored_bytes(stored) // shape[0]
    return [
        (names.format(index), TensorInfo(shape[1:], kind, offset + index * size))
        for index in range(shape[0])
    ]


def quantized_rows(stored: Stored) -> npt.NDArray[np.uint8]:
    """The bytes of a quantized tensor, uint8 [rows, bytes of a row]."""
    raw = stored.part.read(start(stored), stored_bytes(stored))
    return raw.reshape(int(np.prod(stored.info.shape[:-1])), -1)


def some_quantized_rows(stored: Stored, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """`quantized_rows(stored)[rows]`, reading only these."""
    size = stored_bytes(stored) // int(np.prod(stored.info.shape[:-1]))
    begin = start(stored)
    raw = stored.part.read_ranges([(begin + row * size, size) for row in rows.tolist()])
    return raw.reshape(len(rows), size)


def values(stored: Stored) -> npt.NDArray[np.float32]:
    """A tensor's values in order, fp32 in one dimension or in rows."""
    kind = stored.info.ggml_type
    if kind not in (F32, F16):
        return dequantize(quantized_rows(stored), kind)
    raw = stored.part.read(start(stored), stored_bytes(stored))
    return raw.view("<f4" if kind == F32 else "<f2").astype(np.float32, copy=False)


def factors(stored: Stored) -> npt.NDArray[np.float32]:
    """A vector of type F32, such as RoPE's factors.

    Raises:
        BadCheckpoint: it has another type or more dimensions, or its file is truncated.
    """
    if stored.info.ggml_type != F32 or len(stored.info.shape) != 1:
        raise BadCheckpoint(
            f"{stored.part.path}: {stored.name} must be a vector of type F32; convert the "
            "model again"
        )
    return values(stored)


def start(stored: Stored) -> int:
    """The byte of its file that a tensor begins at."""
    header = stored.part.header
    if stored.info.offset % header.alignment:
        raise BadCheckpoint(
            f"{stored.part.path}: {stored.name} begins at byte {stored.info.offset} of the data, "
            f"expected a multiple of {header.alignment}; download it again"
        )
    return header.data_offset + stored.info.offset


def stored_bytes(stored: Stored) -> int:
    """Size of a tensor in bytes, after checking that it is complete and can be dequantized."""
    from gguf import GGMLQuantizationType
    from gguf.constants import GGML_QUANT_SIZES

    number, shape = stored.info.ggml_type, stored.info.shape
    try:
        kind = GGMLQuantizationType(number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise BadCheckpoint(
            f"{stored.part.path}: {stored.name} is stored as ggml type {number}, which the "
            "installed gguf package does not know; upgrade it (pip install -U gguf)"
        ) from None
    if not _can_dequantize(number):
        raise BadCheckpoint(
            f"{stored.part.path}: {stored.name} is stored as {kind.name}, which the installed gguf "
            "package cannot dequantize; upgrade it (pip install -U gguf), or use another "
            "quantization of the model or its safetensors folder"
        )
    if shape[-1] % block:
        raise BadCheckpoint(
            f"{stored.part.path}: {stored.name} has rows of {shape[-1]} elements, which are not "
            f"whole blocks of {kind.name} ({block}); convert the model again"
        )
    size = int(np.prod(shape, dtype=object)) // block * block_bytes
    _check_end(stored, start(stored) + size)
    return size


def dequantize(rows: npt.NDArray[np.uint8], number: int) -> npt.NDArray[np.float32]:
    """The values of whole blocks, in order.

    The gguf package converts 16 rows at a time, which takes up to twice as long for short rows:
    it is given one long row of blocks at a time, whose arrays still fit into a cache.
    """
    from gguf import GGMLQuantizationType
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize as convert

    kind = GGMLQuantizationType(number)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = rows.reshape(-1, block_bytes)
    found = np.empty((len(blocks), block), dtype=np.float32)
    step = _VALUES_AT_ONCE // block
    with np.errstate(all="ignore"):  # scales of zero, or a damaged file
        for first in range(0, len(blocks), step):
            part = blocks[first : first + step]
            found[first : first + step] = convert(part.reshape(1, -1), kind).reshape(-1, block)
    return found


def _check_end(stored: Stored, end: int) -> None:
    size = stored.part.size
    if end > size:
        raise BadCheckpoint(
            f"{stored.part.path} is truncated: {stored.name} ends at byte {end}, the file has "
            f"{size}; download it again"
        )


def _can_dequantize(number: int) -> bool:
    """Try one block of zeros: the gguf package cannot dequantize all types that it knows."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    if number in (F32, F16):
        return True
    _, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
    try:
        dequantize(np.zeros((1, block_bytes), dtype=np.uint8), number)
    except NotImplementedError:
        return False
    return True
