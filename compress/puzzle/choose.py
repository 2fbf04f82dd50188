"""The best student within the budget: one alternative of every half, by integer programming.

Costs and scores are sums over layers, so the choice is a knapsack with several limits (Puzzle,
arXiv 2411.19146, section 4). HiGHS solves it exactly in a second for a hundred layers.
"""

from collections.abc import Sequence

import numpy as np

from edgelm.compress.puzzle.alternatives import Alternative
from edgelm.compress.puzzle.costs import Limit, PuzzleCosts
from edgelm.errors import DoesNotFit, MissingPackage
from edgelm.spec.decoder import DecoderSpec

_TIGHTER = 0.995  # of a limit, where the plan of a choice exceeds it although the sum does not
_ROUNDS = 20


def choose(
    costs: PuzzleCosts, all_alternatives: Sequence[Alternative], scores: Sequence[float]
) -> list[Alternative]:
    """The alternatives of the student with the least sum of scores that meets the budget.

    Args:
        costs: teacher, device and budget.
        all_alternatives: what every layer may have in place of its own halves.
        scores: what each costs in quality, at least 0; the teacher's own halves cost nothing.

    Raises:
        DoesNotFit: no choice meets the budget.
        MissingPackage: scipy is not installed.
    """
    limits = costs.limits(all_alternatives)
    for _ in range(_ROUNDS):
        taken = solve(costs.spec, all_alternatives, scores, limits)
        chosen = [one for one, is_taken in zip(all_alternatives, taken, strict=True) if is_taken]
        missing = costs.missing(chosen)
        if not missing:
            return chosen
        # What several save together may differ a little from the sum of what each saves.
        limits = [Limit(one.name, one.teacher, one.limit * _TIGHTER, one.saved) for one in limits]
    raise DoesNotFit(
        f"no student of these alternatives meets the budget: {'; '.join(missing)}; relax a limit, "
        "or add smaller mlp_ratios"
    )


def solve(
    spec: DecoderSpec,
    all_alternatives: Sequence[Alternative],
    scores: Sequence[float],
    limits: Sequence[Limit],
) -> list[bool]:
    """Which alternatives to take: at most one of each half, at least one layer attending.

    Raises:
        DoesNotFit: no choice meets the limits.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError:
        raise MissingPackage(
            "[puzzle] needs scipy to choose: pip install 'edgelm[compress]'"
        ) from None
    count = len(all_alternatives)
    halves = sorted({(one.layer, one.half) for one in all_alternatives})
    of_half = np.zeros((len(halves), count))
    for index, one in enumerate(all_alternatives):
        of_half[halves.index((one.layer, one.half)), index] = 1
    attention = np.array([[float(one.leaves_out_attention) for one in all_alternatives]])
    constraints = [
        LinearConstraint(of_half, ub=1),
        LinearConstraint(attention, ub=len(spec.attention_layers) - 1),
    ]
    for limit in limits:
        scale = max(abs(limit.teacher), 1e-12)  # the solver's tolerances are absolute
        saved = np.array([limit.saved]) / scale
        constraints.append(LinearConstraint(saved, lb=(limit.teacher - limit.limit) / scale))
    # A tiny price of every replacement: where scores tie at zero, the teacher's own half stays.
    prices = np.maximum(np.array(scores), 0) + 1e-9
    found = milp(prices, integrality=np.ones(count), bounds=Bounds(0, 1), constraints=constraints)
    if found.x is None:
        raise DoesNotFit(
            "no student of these alternatives meets the limits on "
            f"{', '.join(limit.name for limit in limits)}; relax one, or add smaller mlp_ratios"
        )
    return [bool(value > 0.5) for value in found.x]
