"""What `edge-eval` evaluates: a bundle on its engine, or a checkpoint by transformers."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgelm.bench.evaluation.bundle.backend import BundleBackend
from edgelm.bench.evaluation.bundle.batch_equality import exact_batch
from edgelm.bench.evaluation.bundle.workers import BundleWorkers, worker_sizes
from edgelm.bench.evaluation.results.records import Subject
from edgelm.bundle import MANIFEST, read_manifest
from edgelm.bundle.files import listed_graph_sha256
from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.compress.evaluation.backend import Backend, Progress
from edgelm.compress.evaluation.metrics import Metric
from edgelm.devices.detection.threads import physical_cores
from edgelm.errors import BadInput
from edgelm.quantize.precision import describe
from edgelm.runtime.engines.open import engine_version
from edgelm.runtime.engines.session import Session
from edgelm.runtime.loading import load
from edgelm.runtime.model import LanguageModel

_SEQUENCES = 8  # answers that a process writes at a time


@dataclass(frozen=True)
class OpenSubject:
    """A loaded model and what it is."""

    backend: Backend
    record: Subject


def is_bundle(path: str) -> bool:
    """Whether a folder holds a bundle."""
    return (Path(path) / MANIFEST).is_file()


def longest_context(path: str) -> int:
    """The most tokens of a prompt and its answer, of a bundle or a checkpoint."""
    if is_bundle(path):
        return read_manifest(Path(path)).limits.context
    return open_checkpoint(path).spec.max_position_embeddings


def open_subject(
    path: str,
    stack: ExitStack,
    *,
    threads: int | None = None,
    sequences: int | None = None,
    source: str | None = None,
) -> OpenSubject:
    """Load a bundle, or a checkpoint (folder, hub id, .gguf).

    Args:
        path: where it is.
        stack: closes what was opened.
        threads: of a bundle on a CPU.
        sequences: answers that each process of such a bundle writes at a time; None: some where
            that changes no bit of them, else one.
        source: the checkpoint that it is compared with by KL. With a checkpoint, both are loaded.

    Raises:
        BadCheckpoint: the two checkpoints have different tokens.
    """
    if not is_bundle(path):
        return _checkpoint(path, source)
    return _bundle(path, stack, threads, sequences, source)


def _bundle(
    path: str, stack: ExitStack, threads: int | None, sequences: int | None, source: str | None
) -> OpenSubject:
    model = stack.enter_context(load(path, threads=threads))
    model.check_generates()
    manifest = model.manifest
    agreement = None
    if source is not None and not is_bundle(source):
        agreement = partial(_agreement, open_checkpoint(source), model.session)
    counts = Counter(describe(one) for one in manifest.precision.values())
    record = Subject(
        name=Path(path).resolve().name,
        kind="bundle",
        sha256=listed_graph_sha256(manifest),
        engine=manifest.engine.name,
        engine_version=engine_version(manifest),
        precision=", ".join(f"{count} × {name}" for name, count in counts.most_common()),
        source_sha256=manifest.lineage.sha256,
        calibration_sha256=manifest.lineage.calibration_sha256 or "",
    )
    workers = _workers(model, stack, threads or physical_cores(), sequences)
    return OpenSubject(BundleBackend(model, agreement, workers), record)


def _agreement(
    source: Checkpoint, session: Session, rows: Sequence[Sequence[int]], progress: Progress
) -> dict[str, Metric]:
    # Only here: its imports take seconds and a few hundred megabytes.
    from edgelm.bench.evaluation.bundle.source_agreement import SourceAgreement

    return SourceAgreement(source, session)(rows, progress)


def _workers(
    model: LanguageModel, stack: ExitStack, threads: int, sequences: int | None
) -> BundleWorkers | None:
    """Processes that share the threads; None where there is room or use for none."""
    if not model.manifest.graph.takes_batches:
        sequences = 1
    elif sequences is None:
        sequences = exact_batch(model.session, _SEQUENCES)
    sizes = worker_sizes(model.manifest, threads, sequences)
    if sizes is None:
        return None
    workers = BundleWorkers(model.folder, sizes)
    stack.callback(workers.close)
    return workers


def _check_same_vocabulary(name: str, ours: Any, theirs: Any) -> None:
    """Raise BadInput unless two tokenizers have the same ids: kl compares logits by id.

    The tokens that llama.cpp's converter fills a vocabulary up with do not count.
    """
    own, other = (
        {token: number for token, number in one.get_vocab().items() if token != f"[PAD{number}]"}
        for one in (ours, theirs)
    )
    if own == other:
        return
    differing = sorted(own.items() ^ other.items(), key=lambda pair: (pair[1], pair[0]))
    token, number = differing[0]
    raise BadInput(
        f"--against {name} has another vocabulary ({len(own):,} and {len(other):,} tokens; "
        f"{token!r}, id {number}, is in one of them only), and kl compares predictions token by "
        "token; compare a model with its source, or with a student of the same tokenizer"
    )


def _checkpoint(path: str, source: str | None) -> OpenSubject:
    import torch
    import transformers

    from edgelm.bench.evaluation.source_tools import SourceTools
    from edgelm.compress.evaluation.backends.student_backend import StudentBackend
    from edgelm.compress.model import load_model, load_tokenizer

    checkpoint = open_checkpoint(path)
    try:
        tools = SourceTools(checkpoint)
    except BadInput:  # no chat template: tasks that need one will say so
        tools = None
    model, tokenizer, teacher = load_model(checkpoint), load_tokenizer(checkpoint), None
    if source is not None:
        compared = open_checkpoint(source)
        _check_same_vocabulary(compared.name, load_tokenizer(compared), tokenizer)
        teacher = load_model(compared)
    record = Subject(
        name=Path(checkpoint.name).name,  # of a hub id, too
        kind="checkpoint",
        sha256=checkpoint.sha256(),
        engine="transformers",
        engine_version=f"{transformers.__version__}, torch {torch.__version__}",
        precision=str(model.dtype).removeprefix("torch."),
    )
    return OpenSubject(StudentBackend(model, tokenizer, teacher=teacher, tools=tools), record)
