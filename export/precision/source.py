"""Precision `source`: every group as its quantized checkpoint stores it, where kernels can."""

from collections.abc import Collection
from typing import NamedTuple

from edgelm.checkpoint.quantized.packed import PackedMatrix
from edgelm.checkpoint.source import Checkpoint
from edgelm.devices.kernels import Kernels
from edgelm.errors import BadInput
from edgelm.export.precision.legalize import Assignment
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import (
    Fp8,
    Int4,
    Int8,
    Mxfp4,
    Nvfp4,
    WeightPrecision,
    describe,
)
from edgelm.spec.groups import HEAD

_ACTIVATION_BITS = {"fp32": 32.0, "fp16": 16.0, "bf16": 16.0}


class SourceAssignment(NamedTuple):
    """What every group of a quantized checkpoint is stored as.

    assignment: a precision for every group.
    converted: the groups whose levels no kernel's format holds.
    """

    assignment: Assignment
    converted: tuple[str, ...]


def assign_source(
    checkpoint: Checkpoint,
    kernels: Kernels,
    precisions: Collection[str],
    unquantized: WeightPrecision,
) -> SourceAssignment:
    """Every group's own format, or what its levels are converted to.

    Args:
        checkpoint: quantized.
        kernels: the engine's.
        precisions: the names of what the engine has.
        unquantized: for groups that the checkpoint does not quantize as a whole.

    Raises:
        BadInput: nothing in the checkpoint is quantized.
    """
    if not checkpoint.packed:
        raise BadInput(
            f"{checkpoint.name} is not quantized, so there is nothing to keep; leave out "
            "--precision source"
        )
    weights = Weights(checkpoint)
    assignment: Assignment = {}
    converted = []
    for group in weights.groups():
        packed = weights.packed(group)
        if packed is None:
            assignment[group] = unquantized
            continue
        columns = weights.columns(group)
        exact = _shared(packed, weights, group, kernels, precisions)
        if exact is None:
            converted.append(group)
            exact = kernels.converted(max(one.bits for one in packed), columns)
        assignment[group] = exact
    return SourceAssignment(assignment, tuple(converted))


def _shared(
    packed: list[PackedMatrix],
    weights: Weights,
    group: str,
    kernels: Kernels,
    precisions: Collection[str],
) -> WeightPrecision | None:
    """The format that holds all parts of a group."""
    if any(one.inputs is not None for one in packed) and weights.inputs(group) is None:
        return None  # every part expects other inputs
    columns = weights.columns(group)
    held = [one.precision and kernels.holding(one.precision, columns) for one in packed]
    found = [one for one in held if one is not None]
    if len(found) < len(packed):
        return None
    if all(isinstance(one, Int4 | Int8) for one in found):
        return _widest([one for one in found if isinstance(one, Int4 | Int8)])
    first = found[0]
    if isinstance(first, Mxfp4):
        return first
    known = isinstance(first, Fp8 | Nvfp4) and describe(first) in precisions
    return first if known and all(one == first for one in found) and group != HEAD else None


def _widest(formats: list[Int4 | Int8]) -> Int4 | Int8:
    """The integers that hold what each of several formats holds."""
    kind = Int8 if any(isinstance(one, Int8) for one in formats) else Int4
    sizes = [one.group_size for one in formats]
    return kind(min(sizes), all(one.symmetric for one in formats))
