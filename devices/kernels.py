"""What the kernels of each engine support: facts that pruning, export and plans rely on."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from edgelm.devices.tensorrt_versions import engine_family
from edgelm.errors import BadInput, UnknownName
from edgelm.quantize.precision import (
    GROUP_SIZES,
    NVFP4_BLOCK,
    W8A8,
    Fp8,
    Int4,
    Int8,
    Mxfp4,
    Nvfp4,
    WeightPrecision,
    describe,
    parse_precision,
)
from edgelm.spec.decoder import DecoderSpec


class Kernels(NamedTuple):
    """What an engine's kernels support.

    `int4_groups` are the group sizes for int4. With `pads` the inputs need not be a multiple of
    them. With `has_zero_points` int8 comes in groups too; otherwise int8 has one scale per
    output channel. With `one_cache_scale` keys and values of an 8-bit cache share a scale.
    `int4_group` is the default group size of int4. A head's size must be a multiple of
    `head_multiple`, and the rotated part of it a multiple of `rotary_multiple`; it is at most
    `max_head`. With `mxfp4_experts` experts run in MXFP4 as gpt-oss stores them.
    """

    engine: str
    int4_groups: tuple[int, ...]
    has_zero_points: bool
    pads: bool
    one_cache_scale: bool = False
    int4_group: int = 64
    head_multiple: int = 1
    rotary_multiple: int = 2
    max_head: int | None = None
    mxfp4_experts: bool = False

    @property
    def width_multiple(self) -> int:
        """The number that a matrix's input width must be a multiple of for an int4 kernel."""
        return 1 if self.pads else self.int4_groups[0]

    def precision(
        self,
        name: str,
        columns: int | None = None,
        *,
        group_size: int | None = None,
        symmetric: bool | None = None,
    ) -> WeightPrecision:
        """A precision by name, for a matrix with `columns` inputs.

        Without a `group_size`, int4 has this engine's default, or smaller groups if those would
        pad a row by more than an eighth.
        """
        asked = group_size is not None
        if name == "int4" and not asked:
            group_size = self.int4_group
        precision = parse_precision(name, group_size=group_size, symmetric=symmetric)
        if asked or columns is None or not self.pads or not isinstance(precision, Int4 | Int8):
            return precision
        return self._fitted(precision, columns, padding=columns // _MAX_PADDING)

    def for_table(self, precision: Int4 | Int8, columns: int) -> Int4 | Int8:
        """The precision of an embedding table: the largest groups that divide its columns.

        Gathering rows needs whole blocks, and embedding and head are often one table. If no size
        divides, groups pad a row by at most an eighth, and the embedding stays unquantized.
        """
        whole = self._fitted(precision, columns, padding=0)
        if columns % whole.group_size == 0:
            return whole
        return self._fitted(precision, columns, padding=columns // _MAX_PADDING)

    def for_experts(self, precision: Int4 | Int8, columns: Sequence[int]) -> Int4 | Int8 | None:
        """The precision of both matrices of a layer's experts, whose rows no kernel pads.

        None where no group size divides the inputs of both.
        """
        sizes = [size for size in GROUP_SIZES if not any(one % size for one in columns)]
        smaller = [size for size in sizes if size <= precision.group_size]
        return msgspec.structs.replace(precision, group_size=max(smaller)) if smaller else None

    def choices(
        self, columns: int, *, group_size: int | None = None, symmetric: bool | None = None
    ) -> tuple[Int4 | Int8, ...]:
        """The integer formats of a matrix with this many inputs, smallest first."""
        if self.has_zero_points:
            both = (Int4(group_size), Int8(group_size)) if group_size else _GROUPED_CHOICES
            if symmetric is None:
                return both
            return tuple(msgspec.structs.replace(one, symmetric=symmetric) for one in both)
        sizes = [size for size in self._dividing(columns) if group_size in (None, size)]
        int4 = [Int4(size, symmetric=True) for size in sorted(sizes, reverse=True)]
        return (*int4, Int8(columns))  # one scale per output channel

    def nearest(self, precision: Int4 | Int8, columns: int) -> Int4 | Int8:
        """The format nearest to a precision that a matrix with this many inputs can have."""
        if self.has_zero_points:
            return precision
        sizes = self._dividing(columns)
        if isinstance(precision, Int8) or not sizes:  # int8 has no blocks, so it takes any shape
            return Int8(group_size=0)
        wanted = precision.group_size
        return Int4(min(sizes, key=lambda size: (abs(size - wanted), size)), symmetric=True)

    def holding(self, precision: WeightPrecision, columns: int) -> WeightPrecision | None:
        """The format that holds the levels of a quantized source exactly; None where none does.

        Args:
            precision: of the source; groups may be of any size.
            columns: inputs of the matrix.
        """
        if self.has_zero_points:
            if isinstance(precision, Nvfp4):  # E2M1 in halves fits into eight bits
                return Int8(NVFP4_BLOCK)
            if isinstance(precision, Mxfp4):
                return precision if self.mxfp4_experts else None
            if not isinstance(precision, Int4 | Int8):
                return None
            size = self._splitting(precision.group_size, columns)
            return msgspec.structs.replace(precision, group_size=size) if size else None
        if isinstance(precision, Fp8 | Nvfp4):
            return precision
        if not isinstance(precision, Int4 | Int8) or not precision.symmetric:
            return None
        if isinstance(precision, Int8):
            return Int8(group_size=0) if precision.group_size in (0, columns) else None
        sizes = [size for size in self._dividing(columns) if precision.group_size % size == 0]
        if precision.group_size >= columns:
            sizes = self._dividing(columns)
        return Int4(max(sizes), symmetric=True) if sizes else None

    def converted(self, bits: int, columns: int) -> Int4 | Int8:
        """What the levels of a source are converted to where no format holds them.

        Eight bits, which lose nearly nothing, where they come in groups; else as many as the
        source has, in the smallest groups.
        """
        if self.has_zero_points:
            return Int8(32)
        sizes = self._dividing(columns)
        return Int4(min(sizes), symmetric=True) if bits == 4 and sizes else Int8(group_size=0)

    def _splitting(self, group_size: int, columns: int) -> int | None:
        """The largest group size that splits groups of a source; its own default for one group."""
        if group_size == 0 or group_size >= columns:
            return self.int4_group
        fitting = [size for size in self.int4_groups if group_size % size == 0]
        return max(fitting, default=None)

    def check(self, precision: WeightPrecision, group: str, columns: int) -> None:
        """Check that there is a kernel for a group's matrix with this many inputs.

        Raises:
            UnknownName: there is none.
        """
        if isinstance(precision, W8A8 | Fp8 | Nvfp4):
            self._check_quantized_inputs(precision, group, columns)
        if self.has_zero_points or not isinstance(precision, Int4 | Int8):
            return
        size = precision.group_size
        if not precision.symmetric:
            raise UnknownName(f"{self.engine} has no zero points; leave out --no-symmetric")
        if isinstance(precision, Int8):
            if size not in (0, columns):
                raise UnknownName(
                    f"{self.engine} has int8 with one scale per output channel only; leave out "
                    f"--group-size {size}"
                )
            return
        if size not in self.int4_groups:
            raise UnknownName(
                f"{self.engine} has no int4 in groups of {size}; it has "
                f"{', '.join(map(str, self.int4_groups))}"
            )
        if columns % size:
            fits = " or ".join(map(str, self._dividing(columns)))
            raise UnknownName(
                f"{group} has {columns} inputs, which is not a multiple of the group size {size}; "
                + (f"use --group-size {fits}, or " if fits else "use ")
                + f"--layer '{group}=int8'"
            )

    def _check_quantized_inputs(
        self, precision: W8A8 | Fp8 | Nvfp4, group: str, columns: int
    ) -> None:
        if self.has_zero_points:
            raise UnknownName(
                f"{self.engine} has no {describe(precision)}; it has fp32, fp16, bf16, int8 and "
                "int4"
            )
        if isinstance(precision, Nvfp4) and columns % NVFP4_BLOCK:
            raise UnknownName(
                f"{group} has {columns} inputs, which is not a multiple of {NVFP4_BLOCK} as nvfp4 "
                f"needs; use --layer '{group}=int8'"
            )

    def _dividing(self, columns: int) -> list[int]:
        """The engine's int4 group sizes that divide this many inputs."""
        return [size for size in self.int4_groups if columns % size == 0]

    def _fitted(self, precision: Int4 | Int8, columns: int, padding: int) -> Int4 | Int8:
        groups = self.int4_groups
        sizes = [n for n in groups if n <= precision.group_size and -columns % n <= padding]
        return msgspec.structs.replace(precision, group_size=max(sizes, default=min(groups)))


# ONNX Runtime's GroupQueryAttention rejects other heads when it runs ("head_size must be a multiple
# of 8", "head_size shall be a multiple of 16" where it rotates, "cos_cache dimension 1 must be ...
# a multiple of 8"), as of 1.32; the standard operators of the TensorRT graphs have no such limit.
# CUDA's takes at most 512 channels ("exceeds maximum supported MAX_HEAD_SIZE (512)"), as of 1.31.
# ONNX Runtime's CPU kernels are widest with groups of 128 (docs/decisions/int4-group-size.md).
# TensorRT's documentation of Dequantize names blocks of 64 and 128 for int4; TensorRT-RTX 1.7
# also compiles 32. Both reject zero points.
KERNELS = {
    "onnxruntime": Kernels(
        "ONNX Runtime",
        GROUP_SIZES,
        has_zero_points=True,
        pads=True,
        int4_group=128,
        head_multiple=8,
        rotary_multiple=16,
        mxfp4_experts=True,
    ),
    "onnxruntime-cuda": Kernels(
        "ONNX Runtime",
        GROUP_SIZES,
        has_zero_points=True,
        pads=True,
        one_cache_scale=True,
        head_multiple=8,
        rotary_multiple=16,
        max_head=512,
    ),
    "tensorrt": Kernels("TensorRT", (64, 128), has_zero_points=False, pads=False),
    "tensorrt-rtx": Kernels("TensorRT-RTX", (32, 64, 128), has_zero_points=False, pads=False),
}
_MAX_PADDING = 8  # an eighth of a row
# What `auto` chooses from where int4 and int8 come in groups, smallest first.
_GROUPED_CHOICES: tuple[Int4 | Int8, ...] = (
    Int4(128),
    Int4(64),
    Int4(32),
    Int4(16),
    Int8(64),
    Int8(32),
)
_NAMES = {"onnxruntime": "onnxruntime (--target cpu)"}


def kernels_of(engine: str) -> Kernels:
    """The kernels of an engine by its name in a profile, e.g. `tensorrt-10.3`."""
    return KERNELS[engine_family(engine)]


def check_shape(spec: DecoderSpec, engine: str) -> None:
    """Raise BadInput for a decoder that the engine's kernels or sessions cannot run.

    The message names the engines that can.
    """
    if (reason := _why_not(spec, engine)) is None:
        return
    able = [_NAMES.get(name, name) for name in KERNELS if _why_not(spec, name) is None]
    others = "no other engine can"
    if able:
        others = f"{', '.join(able[:-1])} and {able[-1]}" if able[1:] else able[0]
        others += " can (edge-devices list)"
    raise BadInput(f"{engine} cannot run this {spec.family}: {reason}; {others}")


def _why_not(spec: DecoderSpec, engine: str) -> str | None:
    """Why an engine cannot run a decoder; None if it can."""
    rules = kernels_of(engine)
    if not spec.has_head and not rules.has_zero_points:
        return "it is an embedding model, and the engine's sessions return logits only"
    if engine == "onnxruntime-cuda" and spec.is_hybrid:
        return "its sessions hold keys and values only, not the states of other layers"
    if spec.mixtures and not rules.has_zero_points:
        return (
            "TensorRT has no operator for a mixture of experts, and without one every token would "
            "read all experts"
        )
    if wrong := list(dict.fromkeys(_wrong_heads(spec, rules))):
        return f"{rules.engine}'s attention kernel does not support {' and '.join(wrong)}"
    return None


def _wrong_heads(spec: DecoderSpec, rules: Kernels) -> Iterator[str]:
    """What the attention kernel does not support of any layer's heads."""
    # A search asks for thousands of decoders, whose layers are of few kinds.
    kinds = {(id(one.rope), spec.heads(one).dim): one for one in spec.layers if one.attends}
    for layer in kinds.values():
        dim = spec.heads(layer).dim
        rotated = 2 * spec.rotary_width(layer.rope) if layer.rope else None
        multiple = rules.head_multiple
        if rotated == dim:  # the whole head is rotated
            multiple = max(multiple, rules.rotary_multiple)
        if dim % multiple:
            yield f"a head_dim of {dim} (expected a multiple of {multiple})"
        if rules.max_head is not None and dim > rules.max_head:
            yield f"a head_dim of {dim} (expected at most {rules.max_head})"
        if rotated is not None and rotated != dim and rotated % rules.rotary_multiple:
            part = f"{rotated} rotated of {dim} channels of a head"
            yield f"{part} (expected a multiple of {rules.rotary_multiple})"
