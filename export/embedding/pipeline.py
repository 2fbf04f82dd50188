"""The export of an embedding model, from its plan to its manifest."""

from pathlib import Path

import msgspec

from edgelm.bundle import Manifest
from edgelm.bundle.records.embedding import EmbeddingRecord, enforce_embedding
from edgelm.embedding import EmbeddingSettings
from edgelm.export.bundle.draft import draft_manifest
from edgelm.export.bundle.text.tokenizer_files import write_tokenizer_files
from edgelm.export.bundle.write import write_bundle
from edgelm.export.calibration import calibrated, passage_for
from edgelm.export.choose import requested_assignment
from edgelm.export.embedding.deliver import (
    EmbeddingDelivery,
    EmbeddingWriter,
    check_embedding_request,
)
from edgelm.export.embedding.vectors import gate_encoder, read_gate_texts, source_vectors
from edgelm.export.progress import Timed
from edgelm.export.request import ExportRequest
from edgelm.export.source.files import SourceFiles
from edgelm.export.source.reference import Reference
from edgelm.export.source_check.check import source_check
from edgelm.export.target import Target
from edgelm.export.workspace import Workspace, open_workspace
from edgelm.runtime.embedding.encoding import TextEncoder
from edgelm.runtime.text.tokenizer import Tokenizer

_CHAT_TEMPLATE = "chat_template.jinja"


def export_embedding(
    source: SourceFiles,
    target: Target,
    request: ExportRequest,
    folder: Path,
    work: Path | None,
    progress: Timed,
) -> Manifest:
    """The stages of an export into an empty folder.

    Raises:
        GateFailed: the vectors are too far from the source's.
        BadInput: an option that embedding models do not have.
    """
    checkpoint, context = source.checkpoint, target.plan.context
    check_embedding_request(request)
    assert checkpoint.embedding is not None
    settings = msgspec.structs.replace(
        checkpoint.embedding, max_tokens=min(checkpoint.embedding.max_tokens, context)
    )
    write_tokenizer_files(checkpoint, folder)
    (folder / _CHAT_TEMPLATE).unlink(missing_ok=True)  # that of the model that it was made from
    reference = Reference(checkpoint, context=context)
    with open_workspace(folder, work, source, reference, context, progress) as workspace:
        text = passage_for(request.gate_text, folder, target, 1)
        check = source_check(reference, text, context, workspace, enforced=request.gate == "on")
        delivery, calibration = _deliver(workspace, request, target, reference, settings)
        enforce_embedding(delivery.gate)
    manifest = msgspec.structs.replace(
        draft_manifest(checkpoint, target, delivery.graph),
        precision=delivery.assignment,
        check=delivery.check,
        source=check,
        embedding=EmbeddingRecord(
            settings, checkpoint.spec.hidden_size, delivery.gate, delivery.sample
        ),
    )
    return write_bundle(folder, source, manifest, calibration=calibration)


def _deliver(
    workspace: Workspace,
    request: ExportRequest,
    target: Target,
    reference: Reference,
    settings: EmbeddingSettings,
) -> tuple[EmbeddingDelivery, str | None]:
    """The graph in the bundle's folder, and the hash of the calibration text."""
    tokenizer = Tokenizer(workspace.bundle / "tokenizer.json")
    encoder = TextEncoder(tokenizer, settings, settings.max_tokens, target.spec.vocab_size)
    texts = read_gate_texts(request.gate_text, gate_encoder(encoder))
    workspace.progress(f"running the source on {len(texts.tokens)} texts of {texts.name}")
    source = source_vectors(reference, texts.tokens, settings)
    requested = requested_assignment(request, target, reference.checkpoint)
    quantizer, passage = calibrated(workspace, request, target, reference, requested)
    writer = EmbeddingWriter(workspace, request, target, quantizer, texts, source, settings)
    return writer.deliver(requested), passage.sha256 if passage else None
