"""Write what makes a folder a bundle: the gate's sample, the model card and the manifest."""

from datetime import datetime, timezone
from pathlib import Path

import msgspec

import edgelm
from edgelm.bundle import SCHEMA_VERSION, Limits, Manifest, hash_files, write_manifest
from edgelm.checkpoint.source import Checkpoint
from edgelm.export.bundle.lineage import lineage_of
from edgelm.export.bundle.model_card import write_card
from edgelm.export.graph.write import WrittenGraph
from edgelm.export.source.files import SourceFiles
from edgelm.export.target import Target


def draft_manifest(checkpoint: Checkpoint, target: Target, graph: WrittenGraph) -> Manifest:
    """What is known once a graph is written: enough to run it and to compile it."""
    return Manifest(
        schema_version=SCHEMA_VERSION,
        edgelm_version=edgelm.__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        target=target.plan.target,
        spec=checkpoint.spec,
        precision={},
        kv=target.plan.kv,
        weight_bytes=graph.weight_bytes,
        limits=Limits(target.plan.context, prefill_chunk=target.prefill_chunk),
        gate=None,
        lineage=lineage_of(checkpoint, ""),
        graph=graph.contract,
        files={},
        engine=target.requirement,
    )


def write_bundle(folder: Path, source: SourceFiles, manifest: Manifest) -> Manifest:
    """Write the card and the manifest, with the hashes of all files; return the manifest.

    Raises:
        BadCheckpoint: the source has changed since the export began.
    """
    write_card(folder, manifest)
    lineage = lineage_of(source.checkpoint, source.sha256)
    manifest = msgspec.structs.replace(
        manifest,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        lineage=lineage,
        files=hash_files(folder),
    )
    source.check()
    write_manifest(folder, manifest)
    return manifest
