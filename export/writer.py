"""A plan's graph: which dialect writes it, in which types."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from edgelm.bundle import GraphContract
from edgelm.export.decoder import build_decoder
from edgelm.export.decomposed_dialect import DecomposedDialect
from edgelm.export.ort_dialect import OrtDialect
from edgelm.export.quantizer import Quantizer
from edgelm.export.standard_dialect import StandardDialect
from edgelm.export.stored import Activations
from edgelm.export.weights import Weights
from edgelm.precision import Bf16, KvType, Nvfp4, WeightPrecision


class Written(NamedTuple):
    """A graph on disk."""

    contract: GraphContract
    weight_bytes: int


def activations_for(kv: KvType) -> Activations:
    """The type of the residual stream, which a 16-bit cache shares."""
    return "fp16" if kv == "fp16" else "bf16" if kv == "bf16" else "fp32"


def needs_widening(precisions: Iterable[WeightPrecision], kv: KvType) -> bool:
    """Whether ONNX Runtime's CPU provider lacks kernels for these types."""
    return kv == "bf16" or any(isinstance(one, Nvfp4 | Bf16) for one in precisions)


def write_graph(
    folder: Path,
    weights: Weights,
    assignment: Mapping[str, WeightPrecision],
    *,
    dialect: str,
    kv: KvType,
    context: int,
    quantizer: Quantizer | None = None,
    opset: int | None = None,
    widened: bool = False,
) -> Written:
    """Write a checkpoint's graph into a folder.

    Args:
        folder: where to.
        weights: the source.
        assignment: a precision for every group.
        dialect: `ort`, `standard` or `decomposed`.
        kv: type of the cache.
        context: its capacity.
        quantizer: rounds matrices; to nearest by default.
        opset: an older one than the dialect's own.
        widened: in fp32, with dequantized weights, for a check on a CPU without kernels of the
            types.
    """
    activations = activations_for(kv)
    if widened and dialect == "ort":  # its CPU kernels dequantize themselves
        kv, activations = "fp32", "fp32"
    writer: OrtDialect | StandardDialect | DecomposedDialect
    if dialect == "ort":
        writer = OrtDialect(
            folder,
            weights,
            assignment,
            kv=kv,
            context=context,
            activations=activations,
            quantizer=quantizer,
        )
    else:
        kind = StandardDialect if dialect == "standard" else DecomposedDialect
        writer = kind(
            folder,
            weights,
            assignment,
            activations="fp32" if widened else activations,
            context=context,
            quantizer=quantizer,
            opset=opset,
            widened=widened,
        )
    try:
        build_decoder(writer, weights)
        contract = writer.save()
    finally:
        writer.graph.close()
    return Written(contract, writer.graph.weight_bytes)
