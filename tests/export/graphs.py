"""Build a graph of a checkpoint the way the pipeline does, without its stages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from edgelm.bundle import GraphContract, Limits, Lineage, Manifest
from edgelm.checkpoint.source import Checkpoint
from edgelm.export.graph.dtypes import Activations
from edgelm.export.graph.write import GraphFormat, write_graph
from edgelm.export.quantize.kv_scales import KvScaling
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import EIGHT_BIT_KV, PRECISIONS, KvType, WeightPrecision
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine
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
    scaling: KvScaling | None = None,
    chunk: int = CHUNK,
    dialect: DialectName = "ort",
    activations: Activations = "fp32",
    dequantized: bool = False,
    segments: int = 1,
    cuts_windows: bool = False,
    batch: bool = False,
    context: int = CONTEXT,
) -> EngineSession:
    """Write a graph into `folder` and open it; an 8-bit cache needs a scaling."""
    weights = Weights(checkpoint, scaling)
    quantizer = Quantizer(weights, positive_scales=dialect != "ort")
    if not isinstance(precision, Mapping):
        precision = dict.fromkeys(weights.groups(), precision)
    form = GraphFormat(
        dialect,
        kv if kv in EIGHT_BIT_KV else activations,
        activations,
        context,
        dequantized=dequantized,
        segments=segments,
        cuts_windows=cuts_windows,
        batch=batch,
    )
    folder.mkdir(exist_ok=True)
    written = write_graph(folder, quantizer, precision, form)
    return cpu_session(folder, written.contract, capacity=context, chunk=chunk, threads=1)


def cpu_session(
    folder: Path,
    graph: GraphContract,
    *,
    capacity: int,
    chunk: int = CHUNK,
    threads: int | None = None,
) -> EngineSession:
    """A session on ONNX Runtime's CPU provider."""
    return EngineSession(
        OrtEngine(folder, graph, capacity=capacity, prefill_chunk=chunk, threads=threads)
    )


def cpu_engine(session: EngineSession) -> OrtEngine:
    """What a session of `cpu_session` runs on."""
    assert isinstance(session.engine, OrtEngine)
    return session.engine


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
