"""Build a graph of a checkpoint the way the pipeline does, without its stages."""

from collections.abc import Mapping
from pathlib import Path

from edgelm.bundle import Limits, Lineage, Manifest
from edgelm.checkpoint import Checkpoint
from edgelm.export.decoder import build_decoder
from edgelm.export.kv_scales import KvScales
from edgelm.export.ort_dialect import OrtDialect
from edgelm.export.weights import Weights
from edgelm.precision import PRECISIONS, WeightPrecision
from edgelm.runtime.ort import OrtSession

CONTEXT = 64
CHUNK = 16


def build_session(
    checkpoint: Checkpoint,
    folder: Path,
    precision: Mapping[str, WeightPrecision] | WeightPrecision = PRECISIONS["fp32"],
    *,
    kv_scales: KvScales | None = None,
    chunk: int = CHUNK,
) -> OrtSession:
    """Write a graph into `folder` and open it; the cache is int8 if it is given scales."""
    weights = Weights(checkpoint)
    if not isinstance(precision, Mapping):
        precision = dict.fromkeys(weights.groups(), precision)
    dialect = OrtDialect(
        folder,
        weights,
        precision,
        kv="int8" if kv_scales else "fp32",
        kv_scales=kv_scales,
        context=CONTEXT,
    )
    build_decoder(dialect, weights)
    manifest = Manifest(
        schema_version=1,
        edgelm_version="0",
        created="",
        target="cpu",
        spec=checkpoint.spec,
        precision=dict(precision),
        kv=dialect.kv,
        weight_bytes=dialect.graph.weight_bytes,
        limits=Limits(CONTEXT, chunk),
        gate=None,
        lineage=Lineage("", ""),
        graph=dialect.save(),
        files={},
    )
    return OrtSession(folder, manifest, capacity=CONTEXT)
