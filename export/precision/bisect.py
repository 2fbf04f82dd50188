"""`--precision auto`: the smallest bundle that passes the gate.

How far along a frontier of assignments (edgelm.export.precision.frontier) that is, is found by
building and measuring a few candidates on the calibration text. Margins shrink in proportion to the
KL that is expected to remain, which makes the search a matter of three or four candidates.
"""

import math
from collections.abc import Callable

from edgelm.bundle.records.gates import GATES, Figures
from edgelm.export.precision.frontier import Frontier
from edgelm.export.precision.legalize import Assignment

Measure = Callable[[Assignment], Figures]

# Of the gate's limits, on the calibration text: the gate's own text differs a little.
_TARGET_MARGIN = 0.93
_TOLERANCE = 0.05  # a candidate this close to the target is taken: 2,000 tokens tell no better
SIZE_TOLERANCE = 0.025  # of the bytes: a passing candidate this little above a failing one is taken
_MAX_CANDIDATES = 6


def margin(figures: Figures) -> float:
    """The share of the 4-bit gate that is used up, in units of KL; 1 is its limit.

    Disagreement about the top token grows with the root of KL (both measure the size of a small
    perturbation, KL its square), so it enters squared.
    """
    limit = GATES["4-bit"]
    return max(
        figures.kl / limit.max_kl,
        ((1 - figures.top1) / (1 - limit.min_top1)) ** 2,
        math.log(max(1.0, figures.perplexity_ratio)) / math.log(limit.max_perplexity_ratio),
    )


def smallest_passing(
    frontier: Frontier, measure: Measure, *, target: float = _TARGET_MARGIN
) -> int:
    """How many steps bring the margin to about `target`; `frontier.last_step` if none do."""
    failing, passing = -1, frontier.last_step
    sizes = frontier.sizes
    # At 4-bit limits the margin is about KL / max_kl; only the first guess depends on that.
    guess = frontier.first_below(GATES["4-bit"].max_kl * target)
    for _ in range(_MAX_CANDIDATES):
        used = margin(measure(frontier.at(guess)))
        if used <= target + _TOLERANCE:
            passing = guess
        else:
            failing = guess
        if passing - failing <= 1 or abs(used - target) <= _TOLERANCE:
            break
        both = failing >= 0 and passing < frontier.last_step  # which counts as passing unmeasured
        if both and sizes[passing] - sizes[failing] <= SIZE_TOLERANCE * sizes[passing]:
            break
        enough = frontier.first_below(frontier.remaining_kl[guess] * target / max(used, 1e-9))
        guess = min(max(enough, failing + 1), passing - 1)
    return passing
