"""The block formats of GGUF that are grids: levels and scales without arithmetic.

| format | block | value |
|---|---|---|
| Q4_0, Q5_0, Q8_0 | 32 | `(level - middle) * d`, d in fp16 |
| Q6_K | 16 of 256 | `(level - 32) * scale * d`, scale in eight bits |
| MXFP4 | 32 | `E2M1 * 2**(e - 127)`, which are levels of half of that step |

The others have minima that are fractions of a step (Q4_1, Q5_1, Q2_K, Q4_K, Q5_K), or code books:
their values are read, and converted where they are written.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgelm.quantize.precision import Int4, Int8

_Bytes = npt.NDArray[np.uint8]
_Q4_0, _Q5_0, _Q8_0, _Q6_K = 2, 6, 8, 14
MXFP4 = 39
_MXFP4_BYTES = 17  # the exponent and 32 codes
_TWICE_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.int16)
_BYTE_MIDDLE = np.uint8(128)
_FEW_BITS = 5.0  # a weight, up to which a format counts as one of four bits

GRIDS: dict[int, Int4 | Int8] = {
    _Q4_0: Int4(32, symmetric=True),
    _Q5_0: Int8(32),
    _Q8_0: Int8(32),
    _Q6_K: Int8(16),
    MXFP4: Int8(32),
}


class BlockLevels(NamedTuple):
    """Levels uint8 [rows, K] around the middle of their format, and fp32 scales [rows, groups]."""

    levels: _Bytes
    scales: npt.NDArray[np.float32]


def read_levels(rows: _Bytes, number: int) -> BlockLevels:
    """The levels of a matrix in one of GRIDS.

    Args:
        rows: uint8 [rows, bytes of a row].
        number: the ggml type.
    """
    return _READERS[number](rows)


def level_bits(number: int) -> int:
    """4 or 8: what a ggml type's levels are nearer to."""
    from gguf import GGMLQuantizationType
    from gguf.constants import GGML_QUANT_SIZES

    size, count = GGML_QUANT_SIZES[GGMLQuantizationType(number)][::-1]
    return 4 if 8 * size / count <= _FEW_BITS else 8


def _scales(blocks: _Bytes, start: int) -> npt.NDArray[np.float32]:
    """The fp16 number at a byte of every block, fp32 [rows, blocks]."""
    stored = np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")
    return stored[..., 0].astype(np.float32)


def _halves(packed: _Bytes) -> _Bytes:
    """Low nibbles, then high ones, along the last axis."""
    return np.concatenate([packed & 0xF, packed >> 4], -1)


def _q4_0(rows: _Bytes) -> BlockLevels:
    blocks = rows.reshape(len(rows), -1, 18)
    levels = _halves(blocks[..., 2:])
    return BlockLevels(levels.reshape(len(rows), -1), _scales(blocks, 0))


def _q5_0(rows: _Bytes) -> BlockLevels:
    blocks = rows.reshape(len(rows), -1, 22)
    high = np.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little")
    levels = (_halves(blocks[..., 6:]) | high << 4).astype(np.uint8) + np.uint8(128 - 16)
    return BlockLevels(levels.reshape(len(rows), -1), _scales(blocks, 0))


def _q8_0(rows: _Bytes) -> BlockLevels:
    blocks = rows.reshape(len(rows), -1, 34)
    levels = blocks[..., 2:] ^ _BYTE_MIDDLE  # two's complement as levels around 128
    return BlockLevels(levels.reshape(len(rows), -1), _scales(blocks, 0))


def _q6_k(rows: _Bytes) -> BlockLevels:
    blocks = rows.reshape(len(rows), -1, 210)
    # Two halves of 128 weights: 64 bytes of low nibbles and 32 bytes of two high bits each.
    low = blocks[..., :128].reshape(*blocks.shape[:2], 2, 64)
    high = blocks[..., 128:192].reshape(*blocks.shape[:2], 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    tops = ((high >> shifts) & 3).reshape(*blocks.shape[:2], 2, 128)
    levels = (_halves(low) | tops << 4).astype(np.uint8) + np.uint8(128 - 32)
    own = blocks[..., 192:208].view(np.int8).astype(np.float32)
    scales = own * _scales(blocks, 208)[..., None]
    return BlockLevels(levels.reshape(len(rows), -1), scales.reshape(len(rows), -1))


class Mxfp4Codes(NamedTuple):
    """Two codes a byte uint8 [rows, K / 32, 16], the even column low; exponents [rows, K / 32]."""

    codes: _Bytes
    exponents: _Bytes


def mxfp4_codes(rows: _Bytes) -> Mxfp4Codes:
    """The codes of a matrix in MXFP4, in the order in which gpt-oss is published.

    Args:
        rows: uint8 [rows, bytes of a row].
    """
    blocks = rows.reshape(len(rows), -1, _MXFP4_BYTES)
    codes = _halves(blocks[..., 1:])
    pairs = (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)
    return Mxfp4Codes(pairs, blocks[..., 0])


def _mxfp4(rows: _Bytes) -> BlockLevels:
    blocks = rows.reshape(len(rows), -1, _MXFP4_BYTES)
    codes = _halves(blocks[..., 1:])
    magnitudes = _TWICE_E2M1[codes & 7]
    levels = _BYTE_MIDDLE + np.where(codes & 8, -magnitudes, magnitudes)
    scales = np.ldexp(np.float32(1), blocks[..., 0].astype(np.int32) - 128)
    return BlockLevels(levels.astype(np.uint8).reshape(len(rows), -1), scales)


_READERS = {_Q4_0: _q4_0, _Q5_0: _q5_0, _Q8_0: _q8_0, _Q6_K: _q6_k, MXFP4: _mxfp4}
