"""Storage formats of weights and caches. These records are part of the manifest.

A *group* is one matrix of the decoder as it is executed: `layers.3.attention.qkv`,
`layers.3.attention.o`, `layers.3.mlp.gate_up`, `layers.3.mlp.down`, `embedding`, `lm_head` (a tied
head is the group `lm_head` and the embedding follows it).
"""

from typing import Literal

import msgspec

from edgelm.errors import BadInput, UnknownName

KvType = Literal["fp32", "fp16", "bf16", "int8", "fp8"]

SCALE_BYTES = 2  # scales are stored in fp16 and converted to fp32 when the session loads


class Fp32(msgspec.Struct, frozen=True, tag="fp32"):
    """Unquantized."""

    @property
    def bits_per_weight(self) -> float:
        return 32.0


class Fp16(msgspec.Struct, frozen=True, tag="fp16"):
    """Rounded to IEEE half precision."""

    @property
    def bits_per_weight(self) -> float:
        return 16.0


class Bf16(msgspec.Struct, frozen=True, tag="bf16"):
    """Rounded to bfloat16: the range of fp32, eight bits of mantissa."""

    @property
    def bits_per_weight(self) -> float:
        return 16.0


class Int8(msgspec.Struct, frozen=True, tag="int8"):
    """Eight bits, one scale per `group_size` weights along the input axis.

    A `group_size` of 0 is one scale per output channel.
    """

    group_size: int = 32
    symmetric: bool = True

    @property
    def bits_per_weight(self) -> float:
        return _grouped_bits(8, self.group_size, self.symmetric)


class Int4(msgspec.Struct, frozen=True, tag="int4"):
    """Four bits, one scale (and one integer zero point) per `group_size` weights."""

    group_size: int = 64
    symmetric: bool = False

    @property
    def bits_per_weight(self) -> float:
        return _grouped_bits(4, self.group_size, self.symmetric)


class W8A8(msgspec.Struct, frozen=True, tag="w8a8"):
    """Int8 weights with a scale per output channel, int8 inputs with one scale from calibration.

    Outlier channels of the inputs are first scaled down into the weights (SmoothQuant,
    arXiv 2211.10438).
    """

    @property
    def bits_per_weight(self) -> float:
        return 8.0


class Fp8(msgspec.Struct, frozen=True, tag="fp8"):
    """E4M3 weights with a scale per output channel, E4M3 inputs with one scale from calibration."""

    @property
    def bits_per_weight(self) -> float:
        return 8.0


class Nvfp4(msgspec.Struct, frozen=True, tag="nvfp4"):
    """E2M1 weights, an E4M3 scale per 16 of them and an fp32 scale per matrix (NVIDIA's NVFP4)."""

    @property
    def bits_per_weight(self) -> float:
        return 4.5


class Mxfp4(msgspec.Struct, frozen=True, tag="mxfp4"):
    """E2M1 weights, a power of two per 32 of them: experts of gpt-oss as their checkpoint has them.

    Only kept, never quantized to.
    """

    @property
    def bits_per_weight(self) -> float:
        return 4.25


WeightPrecision = Fp32 | Fp16 | Bf16 | Int8 | W8A8 | Int4 | Fp8 | Nvfp4 | Mxfp4
Unquantized = Fp32 | Fp16 | Bf16

PRECISIONS: dict[str, WeightPrecision] = {
    "fp32": Fp32(),
    "fp16": Fp16(),
    "bf16": Bf16(),
    "int8": Int8(),
    "w8a8": W8A8(),
    "fp8": Fp8(),
    "int4": Int4(),
    "nvfp4": Nvfp4(),
}
GROUP_SIZES = (16, 32, 64, 128, 256)
NVFP4_BLOCK = 16  # weights that share an E4M3 scale
EIGHT_BIT_KV = ("int8", "fp8")  # cache types with scales
KV_BYTES: dict[KvType, float] = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0}


def parse_precision(
    name: str, *, group_size: int | None = None, symmetric: bool | None = None
) -> WeightPrecision:
    """A precision by name, with its group size and symmetry replaced where given.

    Raises:
        UnknownName: no such precision.
        BadInput: a group size that no kernel has.
    """
    if name not in PRECISIONS:
        raise UnknownName(f"unknown precision {name!r}; known: auto, {', '.join(PRECISIONS)}")
    precision = PRECISIONS[name]
    if not isinstance(precision, Int4 | Int8):
        return precision
    if group_size is not None:
        if group_size not in GROUP_SIZES:
            raise BadInput(f"group size {group_size} is not one of {list(GROUP_SIZES)}")
        precision = msgspec.structs.replace(precision, group_size=group_size)
    if symmetric is not None:
        precision = msgspec.structs.replace(precision, symmetric=symmetric)
    return precision


def describe(precision: WeightPrecision) -> str:
    """A short name such as `int4 g32 zp`."""
    if isinstance(precision, Mxfp4):
        return "mxfp4"
    if not isinstance(precision, Int4 | Int8):
        return next(name for name, one in PRECISIONS.items() if one == precision)
    kind = "int4" if isinstance(precision, Int4) else "int8"
    size = f"g{precision.group_size}" if precision.group_size else "channel"
    return f"{kind} {size}" + ("" if precision.symmetric else " zp")


def stored_bytes(rows: int, columns: int, precision: Int4 | Int8) -> int:
    """Bytes of a matrix in groups, including scales, zero points and padding."""
    bits = 4 if isinstance(precision, Int4) else 8
    blocks = -(-columns // precision.group_size)
    zeros = 0 if precision.symmetric else -(-blocks * bits // 8)
    return rows * (blocks * (precision.group_size * bits // 8 + SCALE_BYTES) + zeros)


def _grouped_bits(bits: int, group_size: int, symmetric: bool) -> float:
    if not group_size:  # one scale per channel is negligible
        return bits
    return bits + (8 * SCALE_BYTES + (0 if symmetric else bits)) / group_size
