"""Where a bundle's weights come from."""

from edgelm.bundle import Lineage
from edgelm.checkpoint.source import Checkpoint
from edgelm.checkpoint.student import StudentRecord, read_student_record


def lineage_of(checkpoint: Checkpoint, sha256: str, calibration: str | None = None) -> Lineage:
    """The lineage of a bundle.

    Args:
        checkpoint: its source.
        sha256: of the weights that it was made of.
        calibration: SHA-256 of the calibration text.
    """
    return Lineage(
        source=_portable_name(checkpoint),
        sha256=sha256,
        path=None if checkpoint.revision else str(checkpoint.path.resolve()),
        revision=checkpoint.revision,
        license=checkpoint.license,
        compress=_compress_record(checkpoint),
        adapter=checkpoint.adapter,
        calibration_sha256=calibration,
    )


def _portable_name(checkpoint: Checkpoint) -> str:
    """A hub id as it is; of a local path only its last part, which names the model."""
    return checkpoint.name if checkpoint.revision else checkpoint.path.resolve().name


def _compress_record(checkpoint: Checkpoint) -> StudentRecord | None:
    return read_student_record(checkpoint.path) if checkpoint.path.is_dir() else None
