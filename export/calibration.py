"""Run the source on the calibration text and make the quantizer that follows from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from edgelm.checkpoint.source import Checkpoint
from edgelm.export.cached_steps import method_key
from edgelm.export.disk import bundle_need, check_work_space, work_need
from edgelm.export.quantize.methods import KEEPS_LEVELS, METHODS
from edgelm.export.quantize.prepare import prepare
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.source_levels import is_held
from edgelm.export.quantize.weights import Weights
from edgelm.export.request import ExportRequest
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import Passage, affordable, read_passage
from edgelm.export.target import Target
from edgelm.export.work.folder import folder_bytes
from edgelm.export.workspace import Workspace
from edgelm.quantize.precision import (
    EIGHT_BIT_KV,
    Fp8,
    Int4,
    Unquantized,
    WeightPrecision,
)
from edgelm.runtime.text.tokenizer import open_tokenizer

_SEQUENCES = 32  # of calibration, where the text is that long: KL falls with the logarithm


class Calibrated(NamedTuple):
    """A quantizer, and the text that it was calibrated on; None where nothing is quantized."""

    quantizer: Quantizer
    passage: Passage | None


def calibrated(
    workspace: Workspace,
    request: ExportRequest,
    target: Target,
    reference: Reference,
    assignment: Mapping[str, WeightPrecision],
) -> Calibrated:
    """A quantizer for these groups, or for all that `auto` may choose where there are none.

    Raises:
        DoesNotFit: the work folder's disk has too little room.
    """
    positive = not target.kernels.has_zero_points
    precisions, rounded = assignment.values(), _rounded(reference.checkpoint, assignment)
    if precisions and not rounded and target.plan.kv not in EIGHT_BIT_KV:
        weights = Weights(reference.checkpoint)
        return Calibrated(Quantizer(weights, positive_scales=positive), None)
    passage = passage_for(request.calibration, workspace.bundle, target, _SEQUENCES)
    kinds = rounded if precisions else {Int4}
    kv, shared = target.plan.kv, target.kernels.one_cache_scale
    cache = workspace.cache.subfolder(passage.tokens_sha256[:16])
    name, method = request.method, METHODS[request.method]
    if reference.checkpoint.keeps_levels and name == "auto":
        name, method = "source", KEEPS_LEVELS
    matrices = cache.subfolder(method_key(name, kinds, kv, shared_kv_scale=shared))
    if cache.durable:
        used = folder_bytes(cache.folder, recursive=False) + folder_bytes(matrices.folder)
        left = work_need(reference.checkpoint, request, durable=True) - used
        check_work_space(cache.folder, left, workspace.bundle, bundle_need(target.plan))
    weights, stats = prepare(
        reference,
        passage,
        method,
        kinds,
        kv=kv,
        shared_kv_scale=shared,
        cache=cache,
        progress=workspace.progress,
    )
    # Matrices that are written once need no cache.
    again = not precisions or cache.durable or not target.runs_on_cpu(precisions)
    stored = matrices if again else None
    quantizer = Quantizer(weights, method, stats=stats, cache=stored, positive_scales=positive)
    return Calibrated(quantizer, passage)


def _rounded(
    checkpoint: Checkpoint, assignment: Mapping[str, WeightPrecision]
) -> set[type[WeightPrecision]]:
    """The kinds of precision of matrices that are quantized here, or whose inputs are."""
    weights = Weights(checkpoint)
    return {
        type(one)
        for group, one in assignment.items()
        if not isinstance(one, Unquantized)
        and (isinstance(one, Fp8) or not is_held(weights, group, one))
    }


def passage_for(path: Path, bundle: Path, target: Target, sequences: int) -> Passage:
    """Sequences of a text, fewer of them for a large model, by the bundle's tokenizer."""
    return read_passage(
        path,
        open_tokenizer(bundle / "tokenizer.json"),
        vocab_size=target.spec.vocab_size,
        context=target.plan.context,
        sequences=affordable(sequences, target.spec.parameters),
    )
