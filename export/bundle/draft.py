"""The manifest of a bundle that is not finished."""

from datetime import datetime, timezone

import edgelm
from edgelm.bundle import SCHEMA_VERSION, Limits, Manifest
from edgelm.checkpoint.source import Checkpoint
from edgelm.export.bundle.lineage import lineage_of
from edgelm.export.graph.write import WrittenGraph
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
