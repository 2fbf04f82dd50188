"""What a group of weights or a cache is stored as. These records travel in the manifest.

A *group* is one matrix of the decoder as it is executed: `layers.3.attention.qkv`,
`layers.3.attention.o`, `layers.3.mlp.gate_up`, `layers.3.mlp.down`, `embedding`, `lm_head` (a tied
head is the group `lm_head` and the embedding follows it).
"""

from typing import Literal

import msgspec

from edgelm.errors import BadInput, UnknownName

KvType = Literal["fp32", "fp16", "bf16", "int8", "fp8"]

SCALE_BYTES = 2  # scales are stored in fp16 and widened when the session loads


class Fp32(msgspec.Struct, frozen=True, tag="fp32"):
    """Unquantized."""

    @property
    def bits_per_weight(self) -> float:
        return 32.0


class Int8(msgspec.Struct, frozen=True, tag="int8"):
    """Eight bits, one scale per `group_size` weights along the input axis."""

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


WeightPrecision = Fp32 | Int8 | Int4

PRECISIONS: dict[str, WeightPrecision] = {"fp32": Fp32(), "int8": Int8(), "int4": Int4()}
GROUP_SIZES = (16, 32, 64, 128, 256)
KV_BYTES: dict[KvType, float] = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0}
# What engines of GPUs have beside them, for planning: bits a weight with its scales.
_ENGINE_BITS = {"fp16": 16.0, "bf16": 16.0, "fp8": 8.0, "nvfp4": 4.5}


def planned_precisions() -> tuple[str, ...]:
    """Every precision that can be planned for."""
    return (*PRECISIONS, *_ENGINE_BITS)


def planned_bits(
    name: str, *, group_size: int | None = None, symmetric: bool | None = None
) -> float:
    """Bits a weight of a precision, of those too that only a GPU's engine has.

    Raises:
        UnknownName: no such precision.
    """
    if name in _ENGINE_BITS:
        return _ENGINE_BITS[name]
    return parse_precision(name, group_size=group_size, symmetric=symmetric).bits_per_weight


def parse_precision(
    name: str, *, group_size: int | None = None, symmetric: bool | None = None
) -> WeightPrecision:
    """A precision by name, with its group size and symmetry replaced where given."""
    if name not in PRECISIONS:
        raise UnknownName(f"unknown precision {name!r}; known: auto, {', '.join(PRECISIONS)}")
    precision = PRECISIONS[name]
    if isinstance(precision, Fp32):
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
    if isinstance(precision, Fp32):
        return "fp32"
    name = "int4" if isinstance(precision, Int4) else "int8"
    return f"{name} g{precision.group_size}" + ("" if precision.symmetric else " zp")


def _grouped_bits(bits: int, group_size: int, symmetric: bool) -> float:
    return bits + (8 * SCALE_BYTES + (0 if symmetric else bits)) / group_size
