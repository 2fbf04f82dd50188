"""Weights as ONNX Runtime holds them in memory on a CPU.

A session maps one matrix after the other from the file, packs it into the layout of the kernels and
releases the mapping. Packed 8- and 4-bit matrices have the levels of the file; its fp16 scales are
there twice in fp32, once of the graph and once packed, and each block has the sum of its levels in
fp32 (measured with onnxruntime 1.32 on AVX-512: docs/results/2026-11-28-speculation.md).
"""

from edgelm.bundle import Manifest
from edgelm.devices.kernels import kernels_of
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import Int4, Int8, WeightPrecision
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.groups import HEAD, TABLES, executed_shape, experts_in, groups
from edgelm.spec.tensor_shapes import tensor_shapes

_BLOCK_BYTES = 12  # two scales and a sum
_UNQUANTIZED_BITS, _MOSTLY_INT8_BITS = 16, 6
_LAYER_BYTES, _SESSION_BYTES = 350_000, 1_000_000  # of the graph's nodes


def packs(engine: str) -> bool:
    """Whether an engine packs weights when it loads them."""
    return engine == "onnxruntime"


def packed_bits(precision: WeightPrecision) -> float:
    """Bits per weight of a matrix in memory; unquantized ones are packed as they are."""
    if not isinstance(precision, Int4 | Int8) or not precision.group_size:
        return precision.bits_per_weight
    bits = 4 if isinstance(precision, Int4) else 8
    return bits + 8 * _BLOCK_BYTES / precision.group_size


def packing_bytes(manifest: Manifest) -> int:
    """How much more memory a bundle's packed weights take than its file of weights.

    The file keeps the experts' matrices mapped beside their packed copies.
    """
    spec, total = manifest.spec, 0.0
    shapes = tensor_shapes(spec)
    for group in groups(spec):
        precision = manifest.precision.get(group)
        if precision is None or group in TABLES or (group == HEAD and spec.looks_up_head):
            continue
        rows, columns = executed_shape(spec, group, shapes)
        mapped = 0.0 if experts_in(spec, group) else precision.bits_per_weight
        total += rows * columns * (packed_bits(precision) - mapped) / 8
    return int(total)


def planned_packing_bytes(
    spec: DecoderSpec, request: PlanRequest, engine: str, *, linear_bits: float, head_bits: float
) -> int:
    """`packing_bytes` of a bundle that is planned, from the bits per weight of its file."""
    linear = linear_bits * (_ratio(request, engine, None, linear_bits) - 1)
    head = head_bits * (_ratio(request, engine, spec.hidden_size, head_bits) - 1)
    experts = sum(3 * one.experts * one.size for one in spec.mixtures) * spec.hidden_size
    total = spec.linear_parameters * linear
    total += 0 if spec.looks_up_head else spec.embedding_parameters * head
    return int((total + experts * linear_bits) / 8)


def _ratio(request: PlanRequest, engine: str, columns: int | None, bits: float) -> float:
    """Bits in memory for a bit of the file; a mixture is taken for the format next above it."""
    kind = request.kind
    if kind not in ("int8", "int4"):
        if bits >= _UNQUANTIZED_BITS:
            return 1.0
        kind = "int4" if bits < _MOSTLY_INT8_BITS else "int8"
    kernels = kernels_of(engine)
    precision = kernels.precision(
        kind, columns, group_size=request.group_size, symmetric=request.symmetric
    )
    return packed_bits(precision) / precision.bits_per_weight


def session_bytes(spec: DecoderSpec) -> int:
    """What a session holds beside weights: the graph, by its number of layers."""
    return _SESSION_BYTES + _LAYER_BYTES * spec.num_hidden_layers
