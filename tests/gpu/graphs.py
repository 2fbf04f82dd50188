"""Graphs to run on a GPU, beside the same in fp32 on the CPU."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from edgelm.bundle import CompiledEngine, EngineFile, Limits, Manifest, graph_sha256
from edgelm.checkpoint.source import Checkpoint
from edgelm.devices.tensorrt_versions import RTX
from edgelm.export.graph import write as writer
from edgelm.export.graph.dtypes import Activations
from edgelm.export.quantize.kv_scales import KvScaling
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.files.hashing import file_sha256
from edgelm.quantize.precision import KvType, WeightPrecision
from edgelm.runtime.engines.cuda import Gpu
from edgelm.runtime.engines.tensorrt.build import Job, compile_engine
from edgelm.runtime.engines.trust import trust
from tests.export.graphs import DialectName, bare_manifest

CHUNK = 16
# 16 bits against 32, as the gate has it: docs/decisions/gates.md.
KL_16_BIT = 1e-3


class Bundle(NamedTuple):
    """What a session needs of a bundle."""

    folder: Path
    manifest: Manifest

    @property
    def context(self) -> int:
        return self.manifest.limits.context


def write_graph(
    checkpoint: Checkpoint,
    folder: Path,
    dialect: DialectName,
    *,
    precision: WeightPrecision,
    activations: Activations,
    context: int,
    kv: KvType | None = None,
    scaling: KvScaling | None = None,
    segments: int = 1,
    batch: bool = False,
) -> Bundle:
    """Write a graph; its cache has the type of the activations where none is given."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = Weights(checkpoint, scaling)
    quantizer = Quantizer(weights, positive_scales=dialect != "ort")
    each = dict.fromkeys(weights.groups(), precision)
    form = writer.GraphFormat(
        dialect, kv or activations, activations, context, segments=segments, batch=batch
    )
    written = writer.write_graph(folder, quantizer, each, form)
    limits = Limits(context, CHUNK)
    return Bundle(folder, bare_manifest(checkpoint.spec, written.contract, limits=limits))


def compute_in_fp32(bundle: Bundle) -> Bundle:
    """The same graph, whose MatMulNBits no longer round activations to 8 bits, as no GPU does."""
    path = bundle.folder / bundle.manifest.graph.file
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    onnx.save(model, path)
    return bundle


def compile_here(bundle: Bundle, family: str, gpu: Gpu, *, profiles: int) -> CompiledEngine:
    """Compile the graph, or each of its segments, for this machine's GPU."""
    folder, manifest = bundle
    files, version = list[EngineFile](), ""
    for number, part in enumerate(manifest.graph.parts):
        built = compile_engine(
            Job(
                folder / part.file,
                manifest.graph,
                family,
                CHUNK,
                manifest.limits.context,
                compute_capabilities=(gpu.sm,) if family == RTX else (),
                profiles=profiles,
                part=part,
            ),
            lambda text: None,
        )
        name, version = f"{family}-{profiles}-{number}.engine", built.version
        (folder / name).write_bytes(built.content)
        trust(file_sha256(folder / name))
        files.append(EngineFile(name, f"{name}.cache" if family == RTX else ""))
    return CompiledEngine(
        file=files[0].file,
        name=family,
        version=version,
        compute_capabilities=(gpu.sm,),
        graph_sha256=graph_sha256(folder, manifest.graph),
        profiles=profiles,
        build_seconds=0.0,
        machine="a test",
        runtime_cache=files[0].runtime_cache,
        later_segments=tuple(files[1:]),
    )


def divergence(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> float:
    """Mean KL divergence, in nats, of rows of logits from those that they should be."""
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    p, q = (_log_softmax(rows.astype(np.float64)) for rows in (theirs, ours))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _log_softmax(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    rows = rows - rows.max(-1, keepdims=True)
    result: npt.NDArray[Any] = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    return result
