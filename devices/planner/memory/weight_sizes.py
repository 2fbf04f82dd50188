"""Sizes of a decoder's weights as an engine stores them: bits per weight, and bytes by part."""

import math
from collections.abc import Callable

import msgspec

from edgelm.devices.kernels import Kernels, kernels_of
from edgelm.devices.profile import Profile
from edgelm.devices.profile_tables import Engine
from edgelm.errors import UnknownName
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import Int4, Int8, WeightPrecision, stored_bytes
from edgelm.spec.decoder import DecoderSpec

# `auto` ends between int4 and int8; about here on small models, which need more 8-bit matrices.
_AUTO_BITS = 6.5


class WeightSizes(msgspec.Struct, frozen=True):
    """Bits per weight of layers and head, the total, and parts in the order of the graph.

    `parts` are the bytes of the embedding, of each layer, and of the head. A segment has a table
    of its own, so that their sum may exceed `total_bytes`.
    """

    linear_bits: float
    head_bits: float
    total_bytes: int
    parts: tuple[int, ...]


def weight_sizes(
    spec: DecoderSpec, profile: Profile, engine: Engine, request: PlanRequest
) -> WeightSizes:
    """Sizes of the weights in the requested precision.

    Raises:
        UnknownName: the engine does not have the precision.
    """
    linear, head = _bits(spec, profile, engine, request)
    total, embedding = _table_bytes(spec, engine, linear, head)
    layers = spec.weight_bytes(linear, 0)
    share, rest = divmod(layers, spec.num_hidden_layers)
    parts = [share + (index < rest) for index in range(spec.num_hidden_layers)]
    own_head = math.ceil(spec.embedding_parameters * head / 8)
    return WeightSizes(linear, head, total, (embedding, *parts, own_head))


def _bits(
    spec: DecoderSpec, profile: Profile, engine: Engine, request: PlanRequest
) -> tuple[float, float]:
    """Bits per weight of the layers and of the head, which TensorRT stores in at least eight."""
    fewest = 0.0 if engine.dialect == "ort" else 8.0
    if request.source is not None:
        return request.source.linear_bits, max(request.source.head_bits, fewest)
    if request.precision == "auto":
        return _AUTO_BITS, max(_AUTO_BITS, fewest)
    if request.precision not in engine.precisions:
        named = request.precision or "''"
        raise UnknownName(
            f"{profile.name} has no {named} with {engine.name}; it has auto, "
            f"{', '.join(engine.precisions)}"
        )
    kernels = kernels_of(engine.name)

    def precision(columns: int) -> WeightPrecision:
        return kernels.precision(
            request.precision, columns, group_size=request.group_size, symmetric=request.symmetric
        )

    head = precision(spec.hidden_size)
    if not (kernels.pads and isinstance(head, Int4 | Int8)):
        return head.bits_per_weight, max(head.bits_per_weight, fewest)
    head = kernels.for_table(head, spec.hidden_size)
    experts = _expert_precisions(spec, kernels, precision)
    linear = sum(
        _row_bits(experts.get((outputs, inputs)) or precision(inputs), inputs) * outputs
        for outputs, inputs in spec.linear_shapes
    )
    return (
        linear / spec.linear_parameters,
        _row_bits(head, spec.hidden_size) / spec.hidden_size,
    )


def _expert_precisions(
    spec: DecoderSpec, kernels: Kernels, precision: Callable[[int], WeightPrecision]
) -> dict[tuple[int, int], Int4 | Int8]:
    """The precision of experts by the shape of their stacked matrices."""
    found: dict[tuple[int, int], Int4 | Int8] = {}
    for mixture in set(spec.mixtures):
        shapes = mixture.matrices(spec.hidden_size)[:2]
        one = precision(min(inputs for _, inputs in shapes))
        if not isinstance(one, Int4 | Int8):
            continue
        fitted = kernels.for_experts(one, [inputs for _, inputs in shapes])
        found |= {shape: fitted for shape in shapes if fitted is not None}
    return found


def _row_bits(precision: WeightPrecision, columns: int) -> int:
    """Bits of a row in groups, padding of its last block included."""
    assert isinstance(precision, Int4 | Int8)
    return 8 * stored_bytes(1, columns, precision)


def _table_bytes(spec: DecoderSpec, engine: Engine, linear: float, head: float) -> tuple[int, int]:
    """Bytes of all weights, and of the table in which tokens are looked up."""
    if engine.dialect == "ort" or (spec.tie_word_embeddings and linear >= 16):
        return spec.weight_bytes(linear, head), math.ceil(spec.embedding_parameters * head / 8)
    # The embedding keeps 16 bits, with a quantized head, even where the two are tied.
    tables = int(spec.embedding_parameters * (16 + head) / 8)
    return spec.weight_bytes(linear, 0) + tables, 2 * spec.embedding_parameters
