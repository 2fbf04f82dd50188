"""The evaluation that travels with a bundle: `evaluation.json`, written by `edge-eval --record`.

edgelm.bench.evaluation.results.records has all of its fields; here are those that tie it to the
bundle.
"""

from pathlib import Path

import msgspec

from edgelm.bundle.files import bundle_file, listed_graph_sha256
from edgelm.bundle.manifest import Manifest
from edgelm.errors import BadBundle
from edgelm.files.bounded_read import read_bounded
from edgelm.reasons import reason

EVALUATION = "evaluation.json"
_MAX_BYTES = 8 << 20


class EvaluatedModel(msgspec.Struct, frozen=True):
    """What was evaluated: `sha256` is that of a bundle's graph, or of a checkpoint.

    Of a bundle, the other two are those of its source and of its calibration text, "" where there
    was none or an older edgelm wrote the record.
    """

    name: str
    kind: str
    sha256: str
    engine: str
    engine_version: str
    source_sha256: str = ""
    calibration_sha256: str = ""


class RecordedTask(msgspec.Struct, frozen=True):
    """A task by name."""

    task: str


class RecordedEvaluation(msgspec.Struct, frozen=True):
    """What was evaluated, against what, on which tasks."""

    schema_version: int
    created: str
    subject: EvaluatedModel
    tasks: tuple[RecordedTask, ...]
    against: EvaluatedModel | None = None


def check_evaluation(folder: Path, manifest: Manifest) -> RecordedEvaluation | None:
    """The recorded evaluation, which must be of this bundle; None if there is none.

    Raises:
        BadBundle: it is damaged, or was measured on another graph or against another source.
    """
    path = bundle_file(folder, manifest, EVALUATION)
    if path is None:
        return None
    try:
        record = msgspec.json.decode(
            read_bounded(path, at_most=_MAX_BYTES), type=RecordedEvaluation
        )
    except (OSError, ValueError, RecursionError) as error:
        raise BadBundle(
            f"{path} is damaged ({reason(error)}); run edge-eval --record again"
        ) from None
    if record.subject.sha256 != listed_graph_sha256(manifest):
        raise BadBundle(
            f"{path} was measured on another graph (SHA-256 {record.subject.sha256[:16]}...); run "
            "edge-eval --record again"
        )
    _check_origin(path, record.subject, manifest)
    against = record.against
    if against and against.kind == "checkpoint" and against.sha256 != manifest.lineage.sha256:
        raise BadBundle(
            f"{path} compares the bundle with {against.name}, which is not the checkpoint that it "
            "was exported from; run edge-eval --against its source --record again"
        )
    return record


def _check_origin(path: Path, subject: EvaluatedModel, manifest: Manifest) -> None:
    lineage = manifest.lineage
    pairs = {
        "source": (subject.source_sha256, lineage.sha256),
        "calibration text": (subject.calibration_sha256, lineage.calibration_sha256 or ""),
    }
    for name, (recorded, own) in pairs.items():
        if recorded and recorded != own:
            raise BadBundle(
                f"{path} names another {name} (SHA-256 {recorded[:16]}...) than the manifest "
                f"({own[:16] or 'none'}); run edge-eval --record again"
            )
