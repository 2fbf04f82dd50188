"""The steps of an export that are cached, and everything that their results depend on."""

import hashlib
import os
from collections.abc import Callable, Collection
from pathlib import Path

import onnxruntime
import torch
import transformers

import edgelm
from edgelm.checkpoint.source import Checkpoint
from edgelm.export.gate.measure import EvalSettings, Evaluator
from edgelm.export.precision.frontier import Choice, Frontier
from edgelm.export.precision.legalize import Assignment
from edgelm.export.precision.search import candidates_for
from edgelm.export.precision.sensitivity import measure_sensitivity
from edgelm.export.progress import Timed
from edgelm.export.quantize.methods import has_coarse
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.source.files import SourceFiles
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import Passage
from edgelm.export.target import Target
from edgelm.export.work.cache import ArtifactCache, key
from edgelm.files.hashing import file_sha256
from edgelm.quantize.precision import EIGHT_BIT_KV, W8A8, Int4, KvType, WeightPrecision

# No cached result comes from these parts of the package.
_UNUSED = ("__pycache__", "bench", "compress")


def source_key(source: Checkpoint | SourceFiles, reference: Reference, context: int) -> str:
    """Identifies a source and the code that runs it."""
    checkpoint = source.checkpoint if isinstance(source, SourceFiles) else source
    return key(
        code_key(),
        source.sha256 if isinstance(source, SourceFiles) else source.sha256(),
        checkpoint.spec,
        checkpoint.config,
        context if reference.depends_on_context else None,
    )


def code_key() -> str:
    """Identifies all code that cached results come from."""
    return key(
        edgelm.__version__,
        _code_hash(Path(edgelm.__file__).parent),
        str(torch.__version__),
        transformers.__version__,
        onnxruntime.__version__,
    )


def _code_hash(package: Path) -> str:
    """Hash of the package's own code: core, devices with their kernels' rules, export, runtime."""
    digest = hashlib.sha256()
    for folder, inner, names in os.walk(package, followlinks=True):
        inner[:] = sorted(name for name in inner if name not in _UNUSED)
        for name in sorted(names):
            path = Path(folder) / name
            if path.suffix == ".py":
                digest.update(f"{path.relative_to(package)} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def method_key(
    method: str, kinds: Collection[type[WeightPrecision]], kv: KvType, *, shared_kv_scale: bool
) -> str:
    """Identifies what is folded into weights before they are quantized, and how they are."""
    return key(method, W8A8 in kinds, has_coarse(kinds), kv in EIGHT_BIT_KV, shared_kv_scale)


def candidate_name(
    assignment: Assignment, passage: Passage, settings: EvalSettings, kv: KvType, positive: bool
) -> str:
    """The record of a candidate's figures; `positive`: its scales are."""
    return f"candidate {key(assignment, passage.tokens_sha256, settings, kv, positive)}"


def graph_name(sha256: str, passage: Passage, settings: EvalSettings) -> str:
    """The record of a whole graph's figures, by the hash of its bytes."""
    return f"graph {key(sha256, passage.tokens_sha256, settings)}"


def evaluator_for(
    reference: Reference,
    passage: Passage,
    title: str,
    cache: ArtifactCache,
    progress: Callable[[str], None],
) -> Evaluator:
    """An evaluator on a passage, which progress lines call `title`."""
    name = f"states {passage.tokens_sha256[:16]}"
    states = cache.load_tensors(name)
    if states is not None:
        return Evaluator(reference, passage, states["hidden"])
    progress(f"running the source on {title}")
    evaluator = Evaluator.from_passage(reference, passage)
    cache.save_tensors(name, {"hidden": evaluator.hidden.contiguous()})
    return evaluator


def frontier_for(
    target: Target,
    reference: Reference,
    quantizer: Quantizer,
    tokens: torch.Tensor,
    cache: ArtifactCache,
    progress: Timed,
) -> Frontier:
    """The assignments worth trying, from what quantizing one group at a time costs on tokens."""
    request, kernels = target.request, target.kernels
    low = Int4(group_size=32, symmetric=bool(request.symmetric) or not kernels.has_zero_points)
    ranking = key(quantizer.grid(low), tokens.tolist())
    name = f"choices {key(ranking, kernels, request.group_size, request.symmetric)}"
    choices = cache.load_record(name, dict[str, list[Choice]])
    if choices is None:
        choices = candidates_for(
            quantizer,
            kernels,
            _sensitivity(
                reference, quantizer, tokens, low, f"sensitivity {ranking}", cache, progress
            ),
            low,
            group_size=request.group_size,
            symmetric=request.symmetric,
        )
        cache.save_record(name, choices)
    return Frontier.from_choices(choices)


def _sensitivity(
    reference: Reference,
    quantizer: Quantizer,
    tokens: torch.Tensor,
    precision: Int4,
    name: str,
    cache: ArtifactCache,
    progress: Timed,
) -> dict[str, float]:
    sensitivity = cache.load_record(name, dict[str, float])
    if sensitivity is None:
        sensitivity = measure_sensitivity(
            reference,
            quantizer,
            tokens,
            precision,
            lambda done, total: progress.update(f"sensitivity: layer {done} of {total}"),
        )
        cache.save_record(name, sensitivity)
    return sensitivity
