"""`--precision auto`: the smallest bundle that passes the gate.

How far along a frontier of assignments (edgelm.export.precision.frontier) that is, is found by
building and measuring a few candidates on the calibration text. Margins shrink in proportion to the
KL that is expected to be left, which makes the search a matter of three or four candidates.
"""

import math
from collections.abc import Callable

from edgelm.bundle.gates import GATES, Figures
from edgelm.export.precision.frontier import Frontier
from edgelm.quantize.precision import WeightPrecision

Assignment = dict[str, WeightPrecision]
Measure = Callable[[Assignment], Figures]

_AIM = 0.93  # of the gate's limits, on the calibration text: the gate's own text differs a little
_CLOSE = 0.05  # a candidate this close to the aim is taken: two thousand tokens tell no better
NEAR = 0.025  # of the bytes: a passing candidate this little above a failing one is taken
_MOST = 6  # candidates built at most


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


def smallest_passing(frontier: Frontier, measure: Measure, *, aim: float = _AIM) -> int:
    """How many steps to take so that the margin is about `aim`; `frontier.top` if none suffice."""
    failing, passing = -1, frontier.top
    sizes = frontier.sizes
    # At 4-bit limits margin is about left / max_kl; only the first guess depends on that.
    guess = frontier.first_below(GATES["4-bit"].max_kl * aim)
    for _ in range(_MOST):
        used = margin(measure(frontier.rung(guess)))
        if used <= aim + _CLOSE:
            passing = guess
        else:
            failing = guess
        if passing - failing <= 1 or abs(used - aim) <= _CLOSE:
            break
        both = failing >= 0 and passing < frontier.top  # the top counts as passing unmeasured
        if both and sizes[passing] - sizes[failing] <= NEAR * sizes[passing]:
            break
        wanted = frontier.first_below(frontier.left[guess] * aim / max(used, 1e-9))
        guess = min(max(wanted, failing + 1), passing - 1)
    return passing
