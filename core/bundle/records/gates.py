"""The quality gate: how much an exported graph may differ from its source, by precision class.

KL is the mean over tokens of KL(source ‖ export) in nats; top-1 the share of positions where both
rank the same token first; the ratio is export perplexity over source perplexity.
docs/decisions/gates.md explains the limits.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from edgelm.bundle.records.behavior import Behavior
from edgelm.errors import GateFailed
from edgelm.quantize.precision import (
    EIGHT_BIT_KV,
    W8A8,
    Bf16,
    Fp8,
    Fp16,
    Int4,
    Int8,
    KvType,
    Mxfp4,
    Nvfp4,
    WeightPrecision,
)

GateClass = Literal["fp32", "16-bit", "8-bit", "4-bit"]


class Threshold(msgspec.Struct, frozen=True):
    """The limits of one precision class, or of a mixture that was requested."""

    max_kl: float
    min_top1: float
    max_perplexity_ratio: float


MAX_SOURCE_KL = 1e-5
MIN_SOURCE_TOP1 = 0.95  # the order of near ties may change

GATES: dict[GateClass, Threshold] = {
    "fp32": Threshold(max_kl=1e-6, min_top1=0.999, max_perplexity_ratio=1.0001),
    "16-bit": Threshold(max_kl=0.001, min_top1=0.98, max_perplexity_ratio=1.005),
    "8-bit": Threshold(max_kl=0.01, min_top1=0.94, max_perplexity_ratio=1.02),
    "4-bit": Threshold(max_kl=0.10, min_top1=0.85, max_perplexity_ratio=1.08),
}


class Figures(msgspec.Struct, frozen=True):
    """Difference between two models on the same tokens.

    The errors are standard errors of the means over tokens; None if they were not measured.
    """

    kl: float
    top1: float
    perplexity_ratio: float
    perplexity: float
    tokens: int
    kl_error: float | None = None
    top1_error: float | None = None
    perplexity_ratio_error: float | None = None


class SourceCheck(msgspec.Struct, frozen=True):
    """Difference between the gate's reference and the model that transformers loads.

    `layers` of the model were compared on `tokens` tokens, the last one at position `reach` - 1.
    The figures are those of the worst segment. `weights` states which code read them: edgelm for
    a quantized checkpoint or one with an adapter, so that only the computation was compared.
    """

    layers: int
    tokens: int
    reach: int
    kl: float
    top1: float
    weights: Literal["transformers", "edgelm"] = "transformers"

    @property
    def agrees(self) -> bool:
        """Whether both compute the same; in fp32 only the order of sums may differ."""
        return self.kl <= MAX_SOURCE_KL and self.top1 >= MIN_SOURCE_TOP1


class GateResult(msgspec.Struct, frozen=True):
    """The measured figures, the text they refer to, and whether the gate was enforced.

    `gate_class` is that of the smallest precision that was requested. `limits` are those of a
    requested mixture; None for a class's own. `behavior` is that of sampled answers; None where it
    was not measured.
    """

    gate_class: GateClass
    figures: Figures
    passed: bool
    enforced: bool
    text: str
    text_sha256: str
    behavior: Behavior | None = None
    limits: Threshold | None = None

    @property
    def threshold(self) -> Threshold:
        """What the figures were compared with."""
        return self.limits or GATES[self.gate_class]


def gate_class(weights: Iterable[WeightPrecision], kv: KvType) -> GateClass:
    """The class of the smallest precision of a mixture, including the cache."""
    kinds = {type(precision) for precision in weights}
    if kinds & {Int4, Nvfp4, Mxfp4}:
        return "4-bit"
    if kinds & {Int8, W8A8, Fp8} or kv in EIGHT_BIT_KV:
        return "8-bit"
    return "16-bit" if kinds & {Fp16, Bf16} or kv in ("fp16", "bf16") else "fp32"


def blended(shares: Mapping[GateClass, float]) -> Threshold:
    """The limits of a mixture, by the share of weights in each class; the shares sum to 1.

    To first order, the KL that each matrix adds is independent of the others, and the logarithm of
    perplexity follows it. Disagreement about the top token grows with the root of KL.
    """
    limits = [(share, GATES[name]) for name, share in shares.items() if share]
    if len(limits) == 1:
        return limits[0][1]
    disagreement = math.sqrt(sum(share * (1 - one.min_top1) ** 2 for share, one in limits))
    loss = sum(share * math.log(one.max_perplexity_ratio) for share, one in limits)
    return Threshold(
        max_kl=sum(share * one.max_kl for share, one in limits),
        min_top1=1 - disagreement,
        max_perplexity_ratio=math.exp(loss),
    )


def looser(one: Threshold, other: Threshold) -> Threshold:
    """The looser of two in each figure."""
    return Threshold(
        max_kl=max(one.max_kl, other.max_kl),
        min_top1=min(one.min_top1, other.min_top1),
        max_perplexity_ratio=max(one.max_perplexity_ratio, other.max_perplexity_ratio),
    )


def passes(figures: Figures, limit: Threshold) -> bool:
    """Whether the figures are within the limits."""
    return (
        figures.kl <= limit.max_kl
        and figures.top1 >= limit.min_top1
        and figures.perplexity_ratio <= limit.max_perplexity_ratio
    )


def enforce(gate: GateResult, *, wider_cache: KvType | None = None) -> None:
    """Raise GateFailed with the missed limits and a remedy, unless figures and behavior pass.

    `wider_cache` is the remedy if no weight is quantized, so that only the cache is the cause.
    """
    figures, name, limit, behavior = gate.figures, gate.gate_class, gate.threshold, gate.behavior
    if passes(figures, limit):
        if behavior is not None and not behavior.passed:
            raise GateFailed(
                f"the {name} quality gate failed: the bundle's sampled answers are not like its "
                f"source's ({behavior.failure}); use --precision auto or more bits, or --gate off "
                "to write the bundle anyway"
            )
        return
    more = "auto, more bits, a smaller --group-size"
    remedy = f"--kv {wider_cache}" if wider_cache else f"--precision {more}"
    raise GateFailed(
        f"the {name} quality gate failed: KL {figures.kl:.4f} (limit {limit.max_kl:.6g}), top-1 "
        f"{figures.top1:.1%} (at least {limit.min_top1:.1%}), perplexity "
        f"×{figures.perplexity_ratio:.3f} (limit ×{limit.max_perplexity_ratio:.6g}); use {remedy}, "
        "or --gate off to write the bundle anyway"
    )
