"""An assignment of precisions as an engine can run it, checked before work starts."""

from collections.abc import Mapping, Sequence

import msgspec

from edgelm.devices.kernels import Kernels
from edgelm.errors import UnknownName
from edgelm.quantize.precision import (
    W8A8,
    Fp8,
    Int4,
    Int8,
    Mxfp4,
    Nvfp4,
    WeightPrecision,
)
from edgelm.spec.groups import HEAD, PER_LAYER_EMBEDDING, TABLES, expert_pair

Assignment = dict[str, WeightPrecision]


def legalize(
    assignment: Mapping[str, WeightPrecision],
    columns: Mapping[str, int],
    kernels: Kernels,
    *,
    group_size: int | None = None,
    symmetric: bool | None = None,
) -> Assignment:
    """Replace precisions that an engine lacks by the nearest that it has.

    Args:
        assignment: a precision for every group.
        columns: inputs of every group's matrix.
        kernels: the engine's.
        group_size: what was requested, which is never replaced.
        symmetric: what was requested, which is never replaced.

    Raises:
        UnknownName: the engine lacks what was requested, or lacks it for this shape.
    """
    legal = {
        group: _legalize(precision, group, columns[group], kernels, group_size, symmetric)
        for group, precision in assignment.items()
    }
    for group in legal:
        if group.endswith(".experts.gate_up"):
            pair = expert_pair(group)
            found = {legal[one] for one in pair}
            if len(found) > 1:
                found.discard(Mxfp4())  # a matrix is never quantized to that
            widest = max(found, key=lambda one: one.bits_per_weight)
            inputs = [columns[one] for one in pair]
            common = _common(widest, group, inputs, kernels, group_size)
            legal |= dict.fromkeys(pair, common)
    return legal


def _common(
    precision: WeightPrecision,
    group: str,
    columns: Sequence[int],
    kernels: Kernels,
    group_size: int | None,
) -> WeightPrecision:
    """The precision of both matrices of a layer's experts; their kernel pads no rows."""
    if not isinstance(precision, Int4 | Int8):
        return precision
    fitted = kernels.for_experts(precision, columns)
    if fitted is None or group_size not in (None, fitted.group_size):
        both = " and ".join(map(str, columns))
        size = precision.group_size if group_size is None else group_size
        raise UnknownName(
            f"experts have {both} inputs, which are not multiples of {size}, the group size; use "
            f"--layer '{group.removesuffix('gate_up')}*=fp16' or another --group-size"
        )
    return fitted


def _legalize(
    precision: WeightPrecision,
    group: str,
    columns: int,
    kernels: Kernels,
    group_size: int | None,
    symmetric: bool | None,
) -> WeightPrecision:
    if isinstance(precision, Int4 | Int8):
        if kernels.has_zero_points:
            return kernels.for_table(precision, columns) if _is_table(group) else precision
        nearest = kernels.nearest(precision, columns) if group_size is None else precision
        wanted = msgspec.structs.replace(nearest, symmetric=symmetric is not False)
        kernels.check(wanted, group, columns)
        return Int8(group_size=0) if isinstance(wanted, Int8) else wanted
    takes_no_inputs = group in (HEAD, PER_LAYER_EMBEDDING) and not kernels.has_zero_points
    if isinstance(precision, W8A8 | Fp8 | Nvfp4) and takes_no_inputs:
        return Int8(group_size=0)  # the gate compares logits: their inputs stay unquantized
    kernels.check(precision, group, columns)
    return precision


def _is_table(group: str) -> bool:
    return group in (*TABLES, HEAD)
