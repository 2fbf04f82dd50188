"""Write an evaluation into the bundle that it is of: `evaluation.json`, the card, the manifest."""

from pathlib import Path

import msgspec

from edgelm.bench.evaluation.records import Evaluation
from edgelm.bench.evaluation.text_table import markdown_table
from edgelm.bundle import MANIFEST, FileEntry, encode_manifest, read_manifest
from edgelm.bundle.evaluation_record import EVALUATION
from edgelm.bundle.files import listed_graph_sha256
from edgelm.errors import BadInput
from edgelm.files.hashing import file_sha256
from edgelm.files.replacing import replacing

_CARD = "README.md"
_HEADING = "\n## Evaluation\n"


def record_in_bundle(folder: Path, evaluation: Evaluation) -> None:
    """Add the evaluation; an older one is replaced. The manifest is written last.

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
    card = folder / _CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    contents = {
        EVALUATION: msgspec.json.format(msgspec.json.encode(evaluation), indent=1) + b"\n",
        _CARD: (text.partition(_HEADING)[0] + _section(evaluation)).encode(),
    }
    for name, content in contents.items():
        with replacing(folder / name) as file:
            file.write(content)
    files = manifest.files | {name: _entry(folder / name) for name in contents}
    with replacing(folder / MANIFEST) as file:
        file.write(encode_manifest(msgspec.structs.replace(manifest, files=files)))


def _section(evaluation: Evaluation) -> str:
    subject = evaluation.subject
    source = "" if evaluation.against is None else f" beside {evaluation.against.name}"
    return (
        f"{_HEADING}\nMeasured on {subject.engine} {subject.engine_version} by edgelm "
        f"{evaluation.edgelm_version}{source}, {evaluation.created}; values with standard errors."
        f"\n\n{markdown_table(evaluation)}\n"
    )


def _entry(path: Path) -> FileEntry:
    return FileEntry(path.stat().st_size, file_sha256(path))
