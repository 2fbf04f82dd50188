"""The draft head of a checkpoint in the bundle of its model: `draft/`.

Its matrices have the precision of the same matrices in the model's last layer with attention,
rounded to nearest: no text is run through the head, and the model checks what it drafts. Its
embedding and output matrix are the model's own, in the files of the model.
"""

from pathlib import Path

import msgspec

from edgelm.bundle import DRAFT, Manifest, hash_files, write_manifest
from edgelm.checkpoint.drafts.draft_head import draft_head
from edgelm.checkpoint.source import Checkpoint
from edgelm.export.bundle.lineage import lineage_of
from edgelm.export.graph.write import GraphFormat, write_graph
from edgelm.export.precision.legalize import Assignment
from edgelm.export.progress import Progress
from edgelm.export.quantize.methods import METHODS
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.export.source.files import SourceFiles
from edgelm.spec.draft_head import HEAD_CACHE
from edgelm.spec.groups import FUSION, split_group


def write_draft_head(
    folder: Path,
    source: SourceFiles,
    manifest: Manifest,
    assignment: Assignment,
    progress: Progress,
) -> None:
    """Write the head of a bundle's source into its `draft/`.

    Args:
        folder: the bundle.
        source: its source.
        manifest: of the bundle, for ONNX Runtime's CPU; what its model and its head share.
        assignment: the precision of every group of the model.
        progress: called with one line.

    Raises:
        BadInput, BadCheckpoint: as `draft_head`.
    """
    head = draft_head(source.checkpoint)
    progress(f"writing the draft head: {head.spec.linear_parameters / 1e6:,.1f} M parameters")
    draft = folder / DRAFT
    draft.mkdir()
    weights = Weights(head)
    own = _assignment(source.checkpoint, weights, assignment)
    form = GraphFormat("ort", HEAD_CACHE, "fp32", manifest.limits.context)
    graph = write_graph(draft, Quantizer(weights, METHODS["rtn"]), own, form)
    write_manifest(
        draft,
        msgspec.structs.replace(
            manifest,
            spec=head.spec,
            precision=own,
            kv=HEAD_CACHE,
            weight_bytes=graph.weight_bytes,
            lineage=lineage_of(head, source.sha256),
            graph=graph.contract,
            files=hash_files(draft),
        ),
    )


def _assignment(checkpoint: Checkpoint, weights: Weights, model: Assignment) -> Assignment:
    """The precision of the head's groups: that of the same group of the model's last such layer."""
    last = checkpoint.spec.attention_layers[-1]
    return {
        group: model[
            f"layers.{last}.{'attention.qkv' if group == FUSION else split_group(group)[1]}"
        ]
        for group in weights.groups()
    }
