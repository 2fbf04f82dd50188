"""What the stages of an export find out, and all that it depends on."""

import hashlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import onnxruntime
import torch
import transformers

import edgelm
from edgelm.bundle.gates import Figures, SourceCheck
from edgelm.checkpoint.source import Checkpoint
from edgelm.devices.kernels import Kernels
from edgelm.export.cache import Kept, key
from edgelm.export.gate.measure import Judge
from edgelm.export.precision.bisect import Assignment
from edgelm.export.precision.frontier import Choice, Frontier
from edgelm.export.precision.search import choices_for, offers
from edgelm.export.precision.sensitivity import measure_sensitivity
from edgelm.export.quantize.methods import has_coarse
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.source.files import SourceFiles
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import Passage
from edgelm.files.hashing import file_sha256
from edgelm.quantize.precision import EIGHT_BIT_KV, W8A8, Int4, KvType, WeightPrecision

# Findings do not come from these parts of the package.
_APART = ("__pycache__", "bench", "compress")


def source_name(source: Checkpoint | SourceFiles, reference: Reference, context: int) -> str:
    """The name of a source and the code that runs it."""
    checkpoint = source.checkpoint if isinstance(source, SourceFiles) else source
    return key(
        code_name(),
        source.sha256 if isinstance(source, SourceFiles) else source.sha256(),
        checkpoint.spec,
        checkpoint.config,
        context if reference.depends_on_context else None,
    )


def code_name() -> str:
    """The name of all code that findings come from."""
    return key(
        edgelm.__version__,
        _code(Path(edgelm.__file__).parent),
        str(torch.__version__),
        transformers.__version__,
        onnxruntime.__version__,
    )


def _code(package: Path) -> str:
    """Hash of the package's own code: core, devices with their kernels' rules, export, runtime."""
    digest = hashlib.sha256()
    for folder, inner, names in os.walk(package, followlinks=True):
        inner[:] = sorted(name for name in inner if name not in _APART)
        for name in sorted(names):
            path = Path(folder) / name
            if path.suffix == ".py":
                digest.update(f"{path.relative_to(package)} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def source_check_of(
    kept: Kept, passage: Passage, context: int, find: Callable[[], SourceCheck]
) -> SourceCheck:
    """How the reference compares with what transformers loads of the same source."""
    name = key(passage.tokens_sha256, context)
    return kept.record(f"source {name}", SourceCheck, find)


def rounding_name(
    method: str, kinds: Collection[type[WeightPrecision]], kv: KvType, *, shared_scales: bool
) -> str:
    """The name of what is folded into weights before they are rounded, and how they are."""
    return key(method, W8A8 in kinds, has_coarse(kinds), kv in EIGHT_BIT_KV, shared_scales)


def judge_of(
    kept: Kept, reference: Reference, passage: Passage, running: Callable[[], None]
) -> Judge:
    """A judge, from the source's final states on a passage; `running` is called before a run."""

    def find() -> dict[str, torch.Tensor]:
        running()
        return {"hidden": Judge.of(reference, passage).hidden}

    found = kept.tensors(f"states {passage.tokens_sha256[:16]}", find)
    return Judge(reference, passage, found["hidden"])


def frontier_of(
    kept: Kept,
    reference: Reference,
    quantizer: Quantizer,
    tokens: torch.Tensor,
    rules: Kernels,
    *,
    group_size: int | None,
    symmetric: bool | None,
    progress: Callable[[int, int], None],
) -> Frontier:
    """The assignments worth trying, from what rounding one group at a time costs on tokens."""
    low = Int4(group_size=32, symmetric=bool(symmetric) or not rules.grouped)
    ranking = key(quantizer.grid(low), tokens.tolist())
    sensitivity = kept.record(
        f"sensitivity {ranking}",
        dict[str, float],
        lambda: measure_sensitivity(reference, quantizer, tokens, low, progress),
    )
    choices = choices_for(rules, group_size=group_size, symmetric=symmetric)
    offered = kept.record(
        f"offered {key(ranking, rules, group_size, symmetric)}",
        dict[str, list[Choice]],
        lambda: offers(quantizer.weights, sensitivity, low, choices),
    )
    return Frontier.of(offered)


class Manner(NamedTuple):
    """How a graph is run: tokens of a sequence decoded one by one, and of a prefill chunk."""

    tail: int | None
    prefill_chunk: int


def figures_of_candidate(
    kept: Kept,
    assignment: Assignment,
    passage: Passage,
    manner: Manner,
    *,
    kv: KvType,
    positive_scales: bool,
    measure: Callable[[], Figures],
) -> Figures:
    """A candidate's distance from the source, by what it is built of."""
    name = key(assignment, passage.tokens_sha256, manner, kv, positive_scales)
    return kept.record(f"tried {name}", Figures, measure)


def figures_of_graph(
    kept: Kept, sha256: str, passage: Passage, manner: Manner, measure: Callable[[], Figures]
) -> Figures:
    """A graph's distance from the source, by its bytes."""
    return kept.record(f"run {key(sha256, passage.tokens_sha256, manner)}", Figures, measure)
