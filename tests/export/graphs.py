"""Build a graph of a checkpoint the way the pipeline does, without its stages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from edgelm.bundle import GraphContract, Limits, Lineage, Manifest
from edgelm.checkpoint.source import Checkpoint
from edgelm.export.graph.dtypes import Activations
from edgelm.export.graph.write import write_graph
from edgelm.export.quantize.kv_scales import KvFolding
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import EIGHT_BIT_KV, PRECISIONS, KvType, WeightPrecision
from edgelm.runtime.engines.ort import OrtSession
from edgelm.spec.decoder import DecoderSpec

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
    """Write a graph into `folder` and open it; an 8-bit cache needs a folding."""
    weights = Weights(checkpoint, folding)
    if not isinstance(precision, Mapping):
        precision = dict.fromkeys(weights.groups(), precision)
    written = write_graph(
        folder,
        weights,
        precision,
        dialect=dialect,
        kv=kv if kv in EIGHT_BIT_KV else activations,
        activations=activations,
        context=CONTEXT,
        widened=widened,
    )
    manifest = bare_manifest(
        checkpoint.spec,
        written.contract,
        precision=dict(precision),
        kv=kv,
        weight_bytes=written.weight_bytes,
        limits=Limits(CONTEXT, chunk),
    )
    return OrtSession(folder, manifest, capacity=CONTEXT, threads=1)


def bare_manifest(spec: DecoderSpec, graph: GraphContract, **given: Any) -> Manifest:
    """A manifest with what a session reads of it, and nothing about where it is from."""
    values: dict[str, Any] = {
        "schema_version": 1,
        "edgelm_version": "0",
        "created": "",
        "target": "cpu",
        "precision": {},
        "kv": graph.cache.dtype,
        "weight_bytes": 0,
        "limits": Limits(CONTEXT, CHUNK),
        "gate": None,
        "lineage": Lineage("", ""),
        "files": {},
    }
    return Manifest(spec=spec, graph=graph, **values | given)
