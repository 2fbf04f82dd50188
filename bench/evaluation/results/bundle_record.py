"""Write an evaluation into the bundle that it is of: `evaluation.json`, the card, the manifest."""

from pathlib import Path

import msgspec

from edgelm.bench.evaluation.results.records import Evaluation
from edgelm.bench.evaluation.results.text_table import markdown_table
from edgelm.bundle import FileEntry, read_manifest
from edgelm.bundle.files import listed_graph_sha256
from edgelm.bundle.records.evaluation import EVALUATION
from edgelm.errors import BadInput
from edgelm.export.bundle.sign import remove_signature, replace_card
from edgelm.files.hashing import file_sha256
from edgelm.files.replacing import replace_file


def record_in_bundle(folder: Path, evaluation: Evaluation) -> bool:
    """Add the evaluation; an older one is replaced. The manifest is written last.

    Returns whether the bundle had a signature, which does not fit any more and is removed.

    Raises:
        BadInput: it is of another model, or compares the bundle with another source than its own.
    """
    manifest = read_manifest(folder)
    subject, against = evaluation.subject, evaluation.against
    if subject.kind != "bundle" or subject.sha256 != listed_graph_sha256(manifest):
        raise BadInput(f"--record: the evaluation of {subject.name} is not of the bundle {folder}")
    if against and against.kind == "checkpoint" and against.sha256 != manifest.lineage.sha256:
        raise BadInput(
            f"--record: {against.name} is not the checkpoint that {folder} was exported from; "
            "evaluate against its source, or leave out --record"
        )
    signed = remove_signature(folder)
    path = folder / EVALUATION
    replace_file(path, msgspec.json.format(msgspec.json.encode(evaluation), indent=1) + b"\n")
    manifest = read_manifest(folder)
    entry = FileEntry(path.stat().st_size, file_sha256(path))
    manifest = msgspec.structs.replace(manifest, files=manifest.files | {EVALUATION: entry})
    replace_card(folder, manifest, "Evaluation", _section(evaluation))
    return signed


def _section(evaluation: Evaluation) -> str:
    subject = evaluation.subject
    source = "" if evaluation.against is None else f", compared with {evaluation.against.name}"
    return (
        f"Measured on {subject.engine} {subject.engine_version} by edgelm "
        f"{evaluation.edgelm_version}{source}, {evaluation.created}; values with standard errors."
        f"\n\n{markdown_table(evaluation)}"
    )
