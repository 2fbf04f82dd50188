"""Build a graph of a checkpoint the way the pipeline does, without its stages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from edgelm.bundle import Limits, Lineage, Manifest
from edgelm.checkpoint import Checkpoint
from edgelm.export.decoder import build_decoder
from edgelm.export.decomposed_dialect import DecomposedDialect
from edgelm.export.kv_folding import KvFolding
from edgelm.export.ort_dialect import OrtDialect
from edgelm.export.standard_dialect import StandardDialect
from edgelm.export.stored import Activations
from edgelm.export.weights import Weights
from edgelm.precision import PRECISIONS, KvType, WeightPrecision
from edgelm.runtime.ort import OrtSession

DialectName = Literal["ort", "standard", "decomposed"]
CONTEXT = 64
CHUNK = 16


def build_session(
    checkpoint: Checkpoint,
    folder: Path,
    precision: Mapping[str, WeightPrecision] | WeightPrecision = PRECISIONS["fp32"],
    *,
    kv: KvType = "fp32",
    folding: KvFolding | None = None,
    chunk: int = CHUNK,
    dialect: DialectName = "ort",
    activations: Activations = "fp32",
    widened: bool = False,
) -> OrtSession:
    """Write a graph into `folder` and open it; an int8 cache needs a folding."""
    weights = Weights(checkpoint, folding)
    if not isinstance(precision, Mapping):
        precision = dict.fromkeys(weights.groups(), precision)
    writer: OrtDialect | StandardDialect | DecomposedDialect
    if dialect == "ort":
        writer = OrtDialect(folder, weights, precision, kv=kv, context=CONTEXT)
    else:
        kind = StandardDialect if dialect == "standard" else DecomposedDialect
        writer = kind(
            folder, weights, precision, activations=activations, context=CONTEXT, widened=widened
        )
    build_decoder(writer, weights)
    manifest = Manifest(
        schema_version=1,
        edgelm_version="0",
        created="",
        target="cpu",
        spec=checkpoint.spec,
        precision=dict(precision),
        kv=kv,
        weight_bytes=writer.graph.weight_bytes,
        limits=Limits(CONTEXT, chunk),
        gate=None,
        lineage=Lineage("", ""),
        graph=writer.save(),
        files={},
    )
    return OrtSession(folder, manifest, capacity=CONTEXT, threads=1)
