"""What calibration gives to rounding: second moments, evened-out channels, folded caches."""

from collections.abc import Callable, Collection
from contextlib import nullcontext

import torch

from edgelm.export.cache import Kept
from edgelm.export.quantize.calibrate import Calibration, calibrate
from edgelm.export.quantize.kv_scales import KvFolding
from edgelm.export.quantize.methods import Method, has_coarse
from edgelm.export.quantize.smooth_quant import smooth_quant
from edgelm.export.quantize.weights import Weights
from edgelm.export.source.reference import Reference
from edgelm.files.hashing import file_sha256
from edgelm.quantize.awq import Smoothing
from edgelm.quantize.hessians import Hessians
from edgelm.quantize.precision import EIGHT_BIT_KV, W8A8, Int8, KvType, WeightPrecision
from edgelm.spec.groups import EMBEDDING

_SEEN = "calibration"
_MOMENTS = "moments"  # the hashes of their files
_WITH_MOMENTS = "calibration with moments"  # whoever needs no moments takes it as well


def prepare(
    reference: Reference,
    tokens: torch.Tensor,
    method: Method,
    kinds: Collection[type[WeightPrecision]],
    *,
    kv: KvType,
    shared_scales: bool = False,
    kept: Kept,
    running: Callable[[], None] = lambda: None,
) -> Weights:
    """Run the source over int64 tokens [B, T] and fold what was seen into its weights.

    Args:
        reference: the source.
        tokens: the calibration text.
        method: how matrices will be rounded.
        kinds: the kinds of precision that there will be.
        kv: type of the cache.
        shared_scales: one scale for keys and values of an 8-bit cache.
        kept: for what was seen of these tokens and no others, and a folder for second moments,
            which are read again while matrices are rounded.
        running: called before the source is run, which is not if that was done before.
    """
    plain = Weights(reference.checkpoint)
    everywhere = method.everywhere and (Int8 in kinds or W8A8 in kinds)
    moments = None
    whole = kept.has(_WITH_MOMENTS) and (not kept.lasting or _has_moments(kept))
    name = _WITH_MOMENTS if whole else _SEEN
    coarse = has_coarse(kinds)
    if method.compensates and (coarse or everywhere):
        moments = Hessians(kept.folder, reference.spec, tokens=tokens.numel() if whole else 0)
        name = _WITH_MOMENTS
        if not moments.collected:
            kept.forget(name)

    def look() -> dict[str, torch.Tensor]:
        running()
        with moments.watching(reference.model) if moments else nullcontext():
            found = calibrate(reference, tokens).tensors()
        if moments and kept.lasting:
            moments.sync()
            kept.forget(_MOMENTS)
            kept.record(_MOMENTS, dict[str, str], lambda: _moment_hashes(kept))
        return found

    seen = Calibration.of(kept.tensors(name, look))
    groups = [group for group in plain.groups() if group != EMBEDDING]
    energy = {group: seen.energy[plain.input_name(group)] for group in groups}
    smoothing = None
    if W8A8 in kinds:
        smoothing = smooth_quant(plain, seen.peaks)
    elif method.smooths and coarse:
        smoothing = Smoothing.from_mean_squares(reference.spec, energy)
    folding = None
    if kv in EIGHT_BIT_KV:
        # Rounding to nearest and HQQ find the levels again that a student was trained on.
        keeps_grids = not (method.smooths or method.compensates)
        folding = KvFolding.of(
            reference.spec, seen.largest, shared=shared_scales, whole_heads=keeps_grids
        )
    return Weights(reference.checkpoint, folding, seen.energy, seen.peaks, smoothing, moments)


def _has_moments(kept: Kept) -> bool:
    """Whether second moments are as they were when they were collected."""
    return kept.known(_MOMENTS, dict[str, str]) == _moment_hashes(kept)


def _moment_hashes(kept: Kept) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(kept.folder.glob("*.moments"))}
