"""The gate's limits for a request.

They follow from what was requested, not from what came out: of two bundles that answer the same
request, the better one passes if the worse one does, whichever of their matrices fell back to more
bits. docs/decisions/gates.md explains them.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from edgelm.bundle.records.gates import GATES, GateClass, Threshold, blended, gate_class, looser
from edgelm.export.precision.legalize import Assignment
from edgelm.quantize.precision import KvType, WeightPrecision


class GateLimits(NamedTuple):
    """The class of the smallest precision that was requested, and the limits."""

    name: GateClass
    threshold: Threshold


def limits_of_auto(*, has_4_bit: bool) -> GateLimits:
    """`auto` may use 4 bits everywhere, if the engine can."""
    name: GateClass = "4-bit" if has_4_bit else "8-bit"
    return GateLimits(name, GATES[name])


def limits_of_mixture(requested: Assignment, weights: Mapping[str, int], kv: KvType) -> GateLimits:
    """Of precisions that were requested by group, and of a cache.

    Args:
        requested: the precision of each group, before an engine's kernels change it.
        weights: how many each group has.
        kv: the cache; it may cost as much as weights of its class.
    """
    counts = Counter[GateClass]()
    for group, precision in requested.items():
        counts[_class(precision)] += weights[group]
    total = sum(counts.values())
    mixture = blended({name: count / total for name, count in counts.items()})
    cache = GATES[gate_class((), kv)]
    return GateLimits(gate_class(requested.values(), kv), looser(mixture, cache))


def _class(precision: WeightPrecision) -> GateClass:
    return gate_class([precision], "fp32")
