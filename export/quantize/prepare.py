"""From calibration to weights that are ready to be quantized.

The source is run over a text; what was observed gives Hessians, scaled channels and cache scales.
"""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import NamedTuple

from edgelm.export.quantize.calibrate import Calibration, calibrate
from edgelm.export.quantize.input_stats import InputStats, input_name
from edgelm.export.quantize.kv_scales import KvScaling, ValueFactors
from edgelm.export.quantize.methods import Method, has_coarse
from edgelm.export.quantize.smooth_quant import smooth_quant
from edgelm.export.quantize.weights import Weights
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import Passage
from edgelm.export.work.cache import ArtifactCache
from edgelm.files.hashing import file_sha256
from edgelm.quantize.awq import Smoothing
from edgelm.quantize.expert_sums import unseen_experts
from edgelm.quantize.hessians import Hessians
from edgelm.quantize.precision import (
    EIGHT_BIT_KV,
    GROUP_SIZES,
    W8A8,
    KvType,
    WeightPrecision,
)
from edgelm.spec.groups import TABLES

_PLAIN = "calibration"
_HESSIANS = "hessians"  # the hashes of their files
_WITH_HESSIANS = "calibration with hessians"  # serves whoever needs no Hessians as well


class Prepared(NamedTuple):
    """Weights with their scaling folded in, and statistics of the inputs that they then have."""

    weights: Weights
    stats: InputStats


def prepare(
    reference: Reference,
    passage: Passage,
    method: Method,
    kinds: Collection[type[WeightPrecision]],
    *,
    kv: KvType,
    shared_kv_scale: bool = False,
    cache: ArtifactCache,
    progress: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Run the source over a text and fold what was observed into its weights.

    Args:
        reference: the source.
        passage: the calibration text.
        method: how matrices will be quantized.
        kinds: the kinds of precision that there will be.
        kv: type of the cache.
        shared_kv_scale: one scale for keys and values of an 8-bit cache.
        cache: for what was observed on these tokens and no others; its folder holds Hessians,
            which are read again while matrices are quantized.
        progress: called with one line before the source is run.
    """
    observed, hessians = _observe(
        reference, passage, cache, hessians=method.needs_hessian(kinds), progress=progress
    )
    if message := unseen_experts(observed.expert_tokens):
        progress(message)
    plain = Weights(reference.checkpoint)
    smoothing = _smoothing(plain, observed, method, kinds)
    scaling = None
    if kv in EIGHT_BIT_KV:
        scaling = KvScaling.from_calibration(
            reference.spec,
            observed.kv_absmax,
            shared=shared_kv_scale,
            values=_value_factors(plain, method),
            powers_of_two=reference.checkpoint.keeps_levels,
        )
    weights = Weights(reference.checkpoint, scaling, smoothing)
    return Prepared(weights, InputStats(weights, observed.mean_square, observed.absmax, hessians))


def _value_factors(weights: Weights, method: Method) -> ValueFactors:
    """Which value channels get a factor of their own in an 8-bit cache."""
    spec = weights.checkpoint.spec
    if weights.checkpoint.keeps_levels:
        outputs = [group for group in weights.groups() if group.endswith("attention.o")]
        ordered = any(weights.inputs(group) is not None for group in outputs)
        # The levels of a head's columns share groups with no other head's.
        return "layer" if ordered or spec.head_dim % GROUP_SIZES[0] else "head"
    # Round-to-nearest and HQQ recover the levels that a student was trained on.
    keeps_grids = method.scaling == "none" and method.rounding != "gptq"
    return "head" if keeps_grids else "channel"


def _observe(
    reference: Reference,
    passage: Passage,
    cache: ArtifactCache,
    *,
    hessians: bool,
    progress: Callable[[str], None],
) -> tuple[Calibration, Hessians | None]:
    """Statistics of the source on a text, with Hessians if wanted; from the cache if there."""
    collected = cache.has_tensors(_WITH_HESSIANS) and (not cache.durable or _undamaged(cache))
    count = passage.tokens.numel()
    sums = Hessians(cache.folder, reference.spec, tokens=count * collected) if hessians else None
    if sums and not sums.collected:
        cache.remove(_WITH_HESSIANS)
    name = _WITH_HESSIANS if collected or sums else _PLAIN
    stored = cache.load_tensors(name)
    if stored is not None:
        return Calibration.from_tensors(stored), sums
    progress(f"calibrating: running the source on {count:,} tokens of {passage.name}")
    with sums.watching(reference.model) if sums else nullcontext():
        observed = calibrate(reference, passage.tokens)
    if sums and cache.durable:
        sums.sync()
        cache.save_record(_HESSIANS, _hashes(cache))
    cache.save_tensors(name, observed.tensors())
    return observed, sums


def _smoothing(
    weights: Weights,
    observed: Calibration,
    method: Method,
    kinds: Collection[type[WeightPrecision]],
) -> Smoothing | None:
    if W8A8 in kinds:
        return smooth_quant(weights, observed.absmax)
    if method.scaling == "none" or not has_coarse(kinds):
        return None
    groups = [group for group in weights.groups() if group not in TABLES]
    mean_square = {group: observed.mean_square[input_name(weights, group)] for group in groups}
    return Smoothing.from_mean_squares(weights.checkpoint.spec, mean_square)


def _undamaged(cache: ArtifactCache) -> bool:
    """Whether Hessians are as they were when they were collected."""
    return cache.load_record(_HESSIANS, dict[str, str]) == _hashes(cache)


def _hashes(cache: ArtifactCache) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(cache.folder.glob("*.hessian"))}
