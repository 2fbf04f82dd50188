"""`--precision auto`: the smallest bundle that passes the gate.

Everything starts at 4 bits. Groups are ordered by measured KL per byte that 8 bits would add, and
raised in that order; how many are needed is found by building and measuring a few candidates on
the calibration text. Margins shrink in proportion to the KL that is left in the groups not yet
raised, which makes the search a matter of three or four candidates.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgelm.gates import GATES, Figures
from edgelm.precision import Int4, Int8, WeightPrecision

Assignment = dict[str, WeightPrecision]
Measure = Callable[[Assignment], Figures]

_AIM = 0.93  # of the gate's limits, on the calibration text: the gate's own text differs a little
_CLOSE = 0.05  # a candidate this close below the aim is taken
_MOST = 6  # candidates built at most


class Rungs(Protocol):
    """Assignments from the smallest to the best: a Ladder, or allocate's Frontier."""

    @property
    def top(self) -> int:
        """The number of the best."""

    @property
    def left(self) -> Sequence[float]:
        """The KL expected of each."""

    def rung(self, raised: int, /) -> Assignment:
        """The assignment of a number."""

    def first_below(self, left: float, /) -> int:
        """The number of the smallest of which no more than `left` is expected."""


@dataclass(frozen=True)
class Ladder:
    """Groups in the order in which they are raised, and what is left after each step."""

    groups: tuple[str, ...]
    left: tuple[float, ...]
    low: Int4
    high: Int8

    @classmethod
    def of(
        cls, sensitivity: Mapping[str, float], sizes: Mapping[str, int], low: Int4, high: Int8
    ) -> "Ladder":
        """Order groups by KL saved per byte added; sizes are elements per group."""
        groups = sorted(sensitivity, key=lambda group: -sensitivity[group] / sizes[group])
        total = sum(sensitivity.values())
        left = [total]
        for group in groups:
            left.append(max(0.0, left[-1] - sensitivity[group]))
        return cls(tuple(groups), tuple(left), low, high)

    def rung(self, raised: int) -> Assignment:
        """The assignment with the first `raised` groups at 8 bits."""
        return {
            group: self.high if index < raised else self.low
            for index, group in enumerate(self.groups)
        }

    def first_below(self, left: float) -> int:
        """Fewest groups to raise until no more than `left` remains."""
        return next(n for n, rest in enumerate(self.left) if rest <= left or n == self.top)

    @property
    def top(self) -> int:
        """All groups raised."""
        return len(self.groups)


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


def smallest_passing(ladder: Rungs, measure: Measure, *, aim: float = _AIM) -> int:
    """How many groups to raise so that the margin is at most `aim`; `ladder.top` if none does."""
    failing, passing = -1, ladder.top
    # At 4-bit limits margin is about left / max_kl; only the first guess depends on that.
    guess = ladder.first_below(GATES["4-bit"].max_kl * aim)
    for _ in range(_MOST):
        used = margin(measure(ladder.rung(guess)))
        if used <= aim:
            passing = guess
        else:
            failing = guess
        if passing - failing <= 1 or aim - _CLOSE <= used <= aim:
            break
        wanted = ladder.first_below(ladder.left[guess] * (aim - _CLOSE / 2) / max(used, 1e-9))
        guess = min(max(wanted, failing + 1), passing - 1)
    return passing
