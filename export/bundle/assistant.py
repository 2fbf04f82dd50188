"""The assistant of a model in the model's bundle: `draft/`.

Its matrices have eight bits where those of the model's last layer are quantized, rounded to
nearest: no text is run through it, and the model checks what it drafts. It reads the model's
embedding and cache, with the cache's scales.
"""

from pathlib import Path

import msgspec

from edgelm.bundle import DRAFT, Limits, Manifest, hash_files, write_manifest
from edgelm.checkpoint.source import Checkpoint
from edgelm.devices.kernels import KERNELS
from edgelm.export.bundle.lineage import lineage_of
from edgelm.export.graph.write import GraphFormat, write_graph
from edgelm.export.precision.legalize import Assignment, legalize
from edgelm.export.progress import Progress
from edgelm.export.quantize.kv_scales import KvScaling
from edgelm.export.quantize.methods import METHODS
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import Int8, Unquantized


def write_assistant(
    folder: Path,
    assistant: Checkpoint,
    manifest: Manifest,
    assignment: Assignment,
    scaling: KvScaling | None,
    progress: Progress,
) -> None:
    """Write the assistant into a bundle's `draft/`.

    Args:
        folder: the bundle.
        assistant: its checkpoint, opened for the model.
        manifest: of the bundle, for ONNX Runtime's CPU; what the two share.
        assignment: the precision of every group of the model.
        scaling: what is folded into the model's keys and values; None: nothing.
        progress: called with one line.
    """
    spec = assistant.spec
    progress(f"writing the assistant: {spec.parameters / 1e6:,.1f} M parameters")
    draft = folder / DRAFT
    draft.mkdir()
    weights = Weights(assistant, scaling)
    last = assignment[f"layers.{manifest.spec.attention_layers[-1]}.attention.o"]
    wanted = last if isinstance(last, Unquantized) else Int8()
    columns = {group: weights.columns(group) for group in weights.groups()}
    own = legalize(dict.fromkeys(columns, wanted), columns, KERNELS[manifest.engine.name])
    form = GraphFormat("ort", manifest.kv, "fp32", manifest.limits.context)
    graph = write_graph(draft, Quantizer(weights, METHODS["rtn"]), own, form)
    write_manifest(
        draft,
        msgspec.structs.replace(
            manifest,
            spec=spec,
            precision=own,
            limits=Limits(manifest.limits.context, prefill_chunk=1),
            weight_bytes=graph.weight_bytes,
            lineage=lineage_of(assistant, assistant.sha256()),
            graph=graph.contract,
            files=hash_files(draft),
        ),
    )
