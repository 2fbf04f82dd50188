"""What a plan says of a quantized checkpoint whose levels are kept."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from edgelm.checkpoint.quantized.method import Reader
from edgelm.checkpoint.source import Checkpoint
from edgelm.cli import format_bytes
from edgelm.devices.kernels import kernels_of
from edgelm.devices.profile import Profile
from edgelm.devices.profile_tables import Engine
from edgelm.export.precision.source import SourceAssignment, assign_source
from edgelm.export.quantize.weights import Weights
from edgelm.planning import PlanRequest, SourceWeights
from edgelm.quantize.precision import (
    PRECISIONS,
    Int4,
    Int8,
    Nvfp4,
    Unquantized,
    WeightPrecision,
    describe,
    stored_bytes,
)
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.groups import EMBEDDING, HEAD


def with_source(request: PlanRequest, checkpoint: Checkpoint, profile: Profile) -> PlanRequest:
    """A request for `source` with what it means for a device's engine.

    Raises:
        BadInput: nothing in the checkpoint is quantized.
    """
    engine = profile.engine(request.engine)
    return msgspec.structs.replace(request, source=source_weights(checkpoint, engine))


def source_weights(checkpoint: Checkpoint, engine: Engine) -> SourceWeights:
    """Sizes and notes for a plan.

    Raises:
        BadInput: nothing in the checkpoint is quantized.
    """
    plain = PRECISIONS[_unquantized(engine)]
    found = assign_source(checkpoint, kernels_of(engine.name), engine.precisions, plain)
    weights = Weights(checkpoint)
    shapes = {group: weights.shape(group) for group in found.assignment}
    layers = [group for group in shapes if group not in (EMBEDDING, HEAD)]
    bits = sum(_bits(*shapes[group], found.assignment[group]) for group in layers)
    head = _bits(*shapes[HEAD], found.assignment[HEAD])
    kinds = Counter(_kind(found.assignment[group]) for group in layers)
    return SourceWeights(
        kind=kinds.most_common(1)[0][0],
        linear_bits=bits / sum(rows * columns for rows, columns in (shapes[g] for g in layers)),
        head_bits=head / (shapes[HEAD][0] * shapes[HEAD][1]),
        notes=_notes(checkpoint, found, weights),
    )


def declared_weights(reader: Reader, spec: DecoderSpec, engine: Engine) -> SourceWeights:
    """The same from a configuration alone: the layers quantized, embedding and head not."""
    kernels = kernels_of(engine.name)
    bits, kinds = 0.0, Counter[str]()
    for rows, columns in spec.linear_shapes:
        declared = reader.declared
        precision = None if declared is None else kernels.holding(declared, columns)
        if precision is None or describe(precision).split()[0] not in engine.precisions:
            few = 4 if isinstance(declared, Int4 | Nvfp4) else 8
            precision = kernels.converted(few, columns)
        bits += _bits(rows, columns, precision)
        kinds[_kind(precision)] += 1
    return SourceWeights(
        kind=kinds.most_common(1)[0][0],
        linear_bits=bits / spec.linear_parameters,
        head_bits=PRECISIONS[_unquantized(engine)].bits_per_weight,
        notes=(
            f"the source is quantized ({reader.name}); planned from its configuration alone: its "
            "embedding and its head count as unquantized",
        ),
    )


def _unquantized(engine: Engine) -> str:
    """The type of activations, and of weights that the source does not quantize."""
    if engine.name == "onnxruntime":
        return "fp32"
    return "fp16"


def _bits(rows: int, columns: int, precision: WeightPrecision) -> float:
    if isinstance(precision, Int4 | Int8) and precision.group_size:
        return 8.0 * stored_bytes(rows, columns, precision)
    return precision.bits_per_weight * rows * columns


def _kind(precision: WeightPrecision) -> str:
    return describe(precision).split()[0]


def _notes(checkpoint: Checkpoint, found: SourceAssignment, weights: Weights) -> tuple[str, ...]:
    formats = sorted({one.format for one in checkpoint.packed.values()})
    kept = [
        group
        for group, precision in found.assignment.items()
        if group not in found.converted and not isinstance(precision, Unquantized)
    ]
    counts = Counter(describe(found.assignment[group]) for group in kept)
    stored = ", ".join(f"{count} as {name}" for name, count in counts.most_common())
    notes = [
        f"the source is quantized ({', '.join(formats)}); the levels of {len(kept)} of "
        f"{len(found.assignment)} matrices are kept" + (f": {stored}" if stored else "")
    ]
    if found.converted:
        notes.append(_conversion(found))
    plain = [g for g, one in found.assignment.items() if isinstance(one, Unquantized)]
    if plain:
        size = sum(
            rows * columns * found.assignment[group].bits_per_weight / 8
            for group, (rows, columns) in ((group, weights.shape(group)) for group in plain)
        )
        notes.append(
            f"{_some(plain)} not quantized in the source: {format_bytes(int(size))}; a --layer "
            f"option quantizes such a matrix, e.g. --layer '{plain[-1]}=int8'"
        )
    return tuple(notes)


def _conversion(found: SourceAssignment) -> str:
    names = sorted({describe(found.assignment[group]) for group in found.converted})
    return (
        f"{_some(found.converted)} converted to {' and '.join(names)}, because no kernel of the "
        "engine holds the levels; the gate measures the loss"
    )


def _some(groups: Sequence[str]) -> str:
    if len(groups) == 1:
        return f"{groups[0]} is"
    if len(groups) == 2:
        return f"{groups[0]} and {groups[1]} are"
    return f"{groups[0]} and {len(groups) - 1} others are"
