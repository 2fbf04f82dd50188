"""Which precisions and shapes each engine has kernels for, checked before work starts."""

from collections.abc import Mapping

import msgspec

from edgelm.devices.kernels import Kernels
from edgelm.errors import UnknownName
from edgelm.export.quantize.float_formats import NVFP4_BLOCK
from edgelm.quantize.precision import W8A8, Fp8, Int4, Int8, Nvfp4, WeightPrecision, describe
from edgelm.spec.groups import EMBEDDING, HEAD


def legal_assignment(
    assignment: Mapping[str, WeightPrecision],
    columns: Mapping[str, int],
    rules: Kernels,
    *,
    group_size: int | None = None,
    symmetric: bool | None = None,
) -> dict[str, WeightPrecision]:
    """The assignment as the engine can run it.

    Args:
        assignment: a precision for every group.
        columns: inputs of every group's matrix.
        rules: the engine's.
        group_size: what was asked for; where TensorRT needs one that divides a matrix and it does
            not, that is an error. If it was not asked for, the nearest that does is taken, or int8.
        symmetric: what was asked for.

    Raises:
        UnknownName: the engine has no such precision, or not for this shape.
    """
    return {
        group: _legal(precision, group, columns[group], rules, group_size, symmetric)
        for group, precision in assignment.items()
    }


def _legal(
    precision: WeightPrecision,
    group: str,
    columns: int,
    rules: Kernels,
    group_size: int | None,
    symmetric: bool | None,
) -> WeightPrecision:
    if isinstance(precision, W8A8 | Fp8 | Nvfp4):
        return _narrow(precision, group, columns, rules)
    if not isinstance(precision, Int4 | Int8):
        return precision
    if rules.grouped:
        return rules.for_table(precision, columns) if group in (EMBEDDING, HEAD) else precision
    if symmetric is False:
        raise UnknownName(f"{rules.engine} has no zero points; leave out --no-symmetric")
    if isinstance(precision, Int8):
        if group_size is not None and precision.group_size == group_size:
            raise UnknownName(
                f"{rules.engine} has int8 with one scale per output channel only; leave out "
                f"--group-size {group_size}"
            )
        return Int8(group_size=0)
    if group_size is None:
        size = _fitting(precision.group_size, columns, rules)
        # int8 has no blocks, so it takes any shape.
        return Int4(group_size=size, symmetric=True) if size else Int8(group_size=0)
    if group_size not in rules.int4_groups:
        raise UnknownName(
            f"{rules.engine} has no int4 in groups of {group_size}; it has "
            f"{', '.join(map(str, rules.int4_groups))}"
        )
    if columns % group_size:
        fits = [str(one) for one in rules.int4_groups if columns % one == 0]
        raise UnknownName(
            f"{group} has {columns} inputs, no multiple of the group size {group_size}; "
            + (f"use --group-size {' or '.join(fits)}, " if fits else "use ")
            + f"or except it: --layer '{group}=int8'"
        )
    return msgspec.structs.replace(precision, symmetric=True)


def _fitting(wanted: int, columns: int, rules: Kernels) -> int | None:
    """The engine's group size nearest to the wanted one that divides the inputs."""
    sizes = [size for size in rules.int4_groups if columns % size == 0]
    return min(sizes, key=lambda size: (abs(size - wanted), size)) if sizes else None


def _narrow(
    precision: W8A8 | Fp8 | Nvfp4, group: str, columns: int, rules: Kernels
) -> WeightPrecision:
    if rules.grouped:
        raise UnknownName(
            f"{rules.engine} has no {describe(precision)}; it has fp32, fp16, bf16, int8 and int4"
        )
    if group == HEAD:
        return Int8(group_size=0)  # logits are what is judged: their inputs stay unrounded
    if isinstance(precision, Nvfp4) and columns % NVFP4_BLOCK:
        raise UnknownName(
            f"{group} has {columns} inputs, no multiple of {NVFP4_BLOCK}, which nvfp4 needs; "
            f"except it: --layer '{group}=int8'"
        )
    return precision
