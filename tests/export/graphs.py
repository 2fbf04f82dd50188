"""Build a graph of a checkpoint the way the pipeline does, without its stages."""

from collections.abc import Mapping
from pathlib import Path

from edgelm.bundle import Limits, Lineage, Manifest
from edgelm.checkpoint import Checkpoint
from edgelm.export.decoder import build_decoder
from edgelm.export.kv_folding import KvFolding
from edgelm.export.ort_dialect import OrtDialect
from edgelm.export.weights import Weights
from edgelm.precision import PRECISIONS, KvType, WeightPrecision
from edgelm.runtime.ort import OrtSession

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
) -> OrtSession:
    """Write a graph into `folder` and open it; an int8 cache needs a folding."""
    weights = Weights(checkpoint, folding)
    if not isinstance(precision, Mapping):
        precision = dict.fromkeys(weights.groups(), precision)
    dialect = OrtDialect(folder, weights, precision, kv=kv, context=CONTEXT)
    build_decoder(dialect, weights)
    manifest = Manifest(
        schema_version=1,
        edgelm_version="0",
        created="",
        target="cpu",
        spec=checkpoint.spec,
        precision=dict(precision),
        kv=kv,
        weight_bytes=dialect.graph.weight_bytes,
        limits=Limits(CONTEXT, chunk),
        gate=None,
        lineage=Lineage("", ""),
        graph=dialect.save(),
        files={},
    )
    return OrtSession(folder, manifest, capacity=CONTEXT, threads=1)
