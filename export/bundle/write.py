"""Write what makes a folder a bundle: the gate's sample, the model card and the manifest."""

from datetime import datetime, timezone
from pathlib import Path

import msgspec

from edgelm.bundle import DRAFT, MANIFEST, FileEntry, Manifest, hash_files, write_manifest
from edgelm.export.bundle.lineage import lineage_of
from edgelm.export.bundle.model_card import write_card
from edgelm.export.source.files import SourceFiles
from edgelm.files.hashing import file_sha256


def write_bundle(
    folder: Path, source: SourceFiles, manifest: Manifest, *, calibration: str | None = None
) -> Manifest:
    """Write the card and the manifest, with the hashes of all files; return the manifest.

    Args:
        folder: the bundle.
        source: what it was made of.
        manifest: all but card, lineage and hashes.
        calibration: SHA-256 of the calibration text, if there was one.

    Raises:
        BadCheckpoint: the source has changed since the export began.
    """
    write_card(folder, manifest)
    files = hash_files(folder)
    if (folder / DRAFT / MANIFEST).exists():
        files |= draft_entries(folder / DRAFT)
    lineage = lineage_of(source.checkpoint, source.sha256, calibration)
    manifest = msgspec.structs.replace(
        manifest,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        lineage=lineage,
        files=files,
    )
    source.check()
    write_manifest(folder, manifest)
    return manifest


def draft_entries(draft: Path) -> dict[str, FileEntry]:
    """Entries of a draft's files, its manifest among them, in the bundle that it is in."""
    manifest = draft / MANIFEST
    own = FileEntry(manifest.stat().st_size, file_sha256(manifest))
    return {f"{DRAFT}/{name}": one for name, one in {**hash_files(draft), MANIFEST: own}.items()}
