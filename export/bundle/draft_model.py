"""A draft model inside the bundle that it drafts for: `draft/`, a bundle of its own.

The bundle's manifest lists the draft's files, so that they are checked with all others. A draft
model may be far from its source: the large model checks every token. There is no quality gate,
except that precision `auto` chooses by the gate's figures.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from edgelm.bundle import DRAFT, MANIFEST, Manifest, read_manifest, verify
from edgelm.bundle.files import TOKENIZER
from edgelm.bundle.manifest import FileEntry
from edgelm.bundle.manifest_file import encode_manifest
from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.errors import BadInput
from edgelm.export.bundle.model_card import CARD
from edgelm.export.bundle.sign import remove_signature
from edgelm.export.bundle.text.text_files import text_files
from edgelm.export.bundle.write import draft_entries
from edgelm.export.pipeline import export_model
from edgelm.export.progress import Progress
from edgelm.export.source.text import CALIBRATION
from edgelm.files.staging import replace_file

log = logging.getLogger(__name__)


def export_draft(
    source: str | Path,
    bundle: str | Path,
    *,
    precision: str = "int8",
    group_size: int | None = None,
    symmetric: bool | None = None,
    exceptions: Mapping[str, str] | None = None,
    method: str = "auto",
    calibration: str | Path = CALIBRATION,
    revision: str | None = None,
    work: str | Path | None = None,
    progress: Progress = log.info,
) -> Manifest:
    """Export a small model as the draft model of a bundle; an earlier one is replaced.

    Target, engine and context are the bundle's. A signature of the bundle is removed.

    Args:
        source: a Hugging Face folder, a hub id or a `.gguf` file.
        bundle: the bundle that it drafts for.
        precision: as in `export_model`.
        group_size: as in `export_model`.
        symmetric: as in `export_model`.
        exceptions: as in `export_model`.
        method: as in `export_model`.
        calibration: as in `export_model`.
        revision: commit, tag or branch for a hub id.
        work: a folder for intermediate results.
        progress: called with one line at each stage.

    Returns:
        The draft's manifest.

    Raises:
        BadInput: another tokenizer than the bundle's, or a bundle whose engine is compiled.
        BadBundle: the bundle is damaged.
        DoesNotFit, BadCheckpoint, UnknownName: as `export_model`.
    """
    folder = Path(bundle)
    manifest = read_manifest(folder)
    if manifest.compiles:
        raise BadInput(
            f"{folder} is for {manifest.engine.name}, whose engines are compiled; draft models are "
            "for bundles that run on ONNX Runtime"
        )
    if manifest.embedding is not None or not read_spec(source, revision=revision).has_head:
        raise BadInput(
            "an embedding model does not generate text, so it neither drafts tokens nor uses a "
            "draft model; use language models for both"
        )
    verify(folder, manifest)
    check_same_tokens(source, folder, revision=revision)
    own = {name: one for name, one in manifest.files.items() if not name.startswith(f"{DRAFT}/")}
    if len(own) < len(manifest.files):
        # While the draft is replaced the bundle has none, so that it can be loaded all the time.
        manifest = _write(folder, manifest, own, progress)
        own = manifest.files
    draft = export_model(
        source,
        folder / DRAFT,
        target=manifest.target,
        engine=manifest.engine.name,
        precision=precision,
        group_size=group_size,
        symmetric=symmetric,
        exceptions=exceptions,
        method=method,
        calibration=calibration,
        gate="off" if precision == "auto" else "none",
        context=min(manifest.limits.context, _longest(source, revision)),
        revision=revision,
        work=work,
        progress=progress,
    )
    _write(folder, manifest, own | draft_entries(folder / DRAFT), progress)
    return draft


def check_same_tokens(source: str | Path, bundle: Path, *, revision: str | None = None) -> None:
    """Raise BadInput unless both have the same tokens, by the same ids."""
    files = text_files(open_checkpoint(source, revision=revision))
    theirs = Tokenizer.from_buffer(files.tokenizer).get_vocab(with_added_tokens=True)
    ours = Tokenizer.from_file(str(bundle / TOKENIZER)).get_vocab(with_added_tokens=True)
    if theirs == ours:
        return
    differing = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda pair: (pair[1], pair[0]))
    token, number = differing[0]
    raise BadInput(
        f"{source} has {len(theirs)} tokens, {bundle} {len(ours)}, and they differ first at id "
        f"{number} ({token!r}): a draft model needs the same tokenizer; take a smaller model of "
        "the same family"
    )


def _longest(source: str | Path, revision: str | None) -> int:
    return open_checkpoint(source, revision=revision).spec.max_position_embeddings


def _write(
    folder: Path, manifest: Manifest, files: dict[str, FileEntry], progress: Progress
) -> Manifest:
    """List these files; a signature of the bundle as it was is removed."""
    if remove_signature(folder):
        progress("the bundle changes, so its signature was removed; sign it again: --sign")
        files = files | {CARD: read_manifest(folder).files[CARD]}
    changed = msgspec.structs.replace(manifest, files=files)
    replace_file(folder / MANIFEST, encode_manifest(changed))
    return changed
