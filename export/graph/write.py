"""A decoder's graph, by whichever dialect is asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from edgelm.bundle import GraphContract
from edgelm.export.graph.decoder import build_decoder
from edgelm.export.graph.decomposed import DecomposedDialect
from edgelm.export.graph.dtypes import Activations
from edgelm.export.graph.ort import OrtDialect
from edgelm.export.graph.standard import StandardDialect
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import EIGHT_BIT_KV, KvType, WeightPrecision


class Written(NamedTuple):
    """A graph on disk."""

    contract: GraphContract
    weight_bytes: int


def write_graph(
    folder: Path,
    weights: Weights,
    assignment: Mapping[str, WeightPrecision],
    *,
    dialect: str,
    kv: KvType,
    activations: Activations,
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
        activations: type of the residual stream, which a cache of 16 or 32 bits shares.
        context: its capacity.
        quantizer: rounds matrices; to nearest by default.
        opset: an older one than the dialect's own.
        widened: in fp32, with dequantized weights, for a check on a CPU without kernels of the
            types.
    """
    if widened and dialect == "ort":  # its CPU kernels dequantize themselves
        kv, activations = kv if kv in EIGHT_BIT_KV else "fp32", "fp32"
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
