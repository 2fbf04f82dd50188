"""The search for a mixture: the smallest that passes the gate, or the best within a size."""

from bisect import bisect
from collections.abc import Callable, Mapping

import msgspec
import torch

from edgelm.bundle.gates import Figures
from edgelm.devices.kernels import Kernels
from edgelm.export.precision.bisect import NEAR, Assignment, margin, smallest_passing
from edgelm.export.precision.frontier import CHOICES, Choice, Frontier, offer
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import Int4, Int8, WeightPrecision

Measure = Callable[[Assignment], Figures]


class Search:
    """Walks a frontier of assignments, from the smallest to the best and then to the source's own.

    Args:
        frontier: the assignments.
        whole: what a group is where even eight bits are too few.
        raised: how far along; past the frontier's top everything is `whole`.

    Attributes:
        missed: the last that the gate's text refused; -1 where there was none.
    """

    def __init__(self, frontier: Frontier, whole: WeightPrecision, raised: int = 0) -> None:
        self.frontier = frontier
        self.whole = whole
        self.raised = raised
        self.missed = -1

    @property
    def assignment(self) -> Assignment:
        """Where the search stands."""
        if self.raised > self.frontier.top:
            return dict.fromkeys(self.frontier.groups, self.whole)
        return self.frontier.rung(self.raised)

    def find(self, measure: Measure) -> Assignment:
        """Go to the smallest that passes on the text that `measure` measures on."""
        self.raised = smallest_passing(self.frontier, measure)
        return self.assignment

    def more(self, figures: Figures) -> Assignment | None:
        """More bits after a miss on other text; None where nothing is left to raise."""
        if self.raised > self.frontier.top:
            return None
        self.missed = self.raised
        if self.raised == self.frontier.top:
            self.raised += 1
            return self.assignment
        left = self.frontier.left[self.raised]
        wanted = self.frontier.first_below(left * 0.97 / margin(figures))
        self.raised = max(self.raised + 1, wanted)
        return self.assignment

    def less(self) -> Assignment | None:
        """Halfway back to what missed, after a pass; None where there is little to gain."""
        sizes = self.frontier.sizes
        if self.missed < 0 or self.raised > self.frontier.top:
            return None
        low, high = sizes[self.missed], sizes[self.raised]
        if high - low <= NEAR * high:
            return None
        middle = bisect(sizes, (low + high) / 2, self.missed + 1, self.raised)
        if middle == self.raised:  # one step with all the bytes
            return None
        self.raised = middle
        return self.assignment


Choices = Callable[[str, torch.Tensor], tuple[Int4 | Int8, ...]]


def offers(
    weights: Weights, sensitivity: Mapping[str, float], measured: Int4, choices: Choices
) -> dict[str, list[Choice]]:
    """Every group's choices from what one precision costs it, in nats a token."""
    offered: dict[str, list[Choice]] = {}
    for group, kl in sensitivity.items():
        matrix, importance = weights.matrix(group), weights.importance(group)
        offered[group] = offer(matrix, importance, kl, measured, choices(group, matrix))
    return offered


def choices_for(rules: Kernels, *, group_size: int | None, symmetric: bool | None) -> Choices:
    """What an engine can store a matrix as, smallest first."""

    def choices(group: str, matrix: torch.Tensor) -> tuple[Int4 | Int8, ...]:
        columns = matrix.shape[1]
        if rules.grouped:
            offered = (Int4(group_size), Int8(group_size)) if group_size else CHOICES
            return tuple(_as_asked(one, symmetric) for one in offered)
        fitting = [size for size in rules.int4_groups if columns % size == 0]
        fitting = [size for size in fitting if group_size in (None, size)]
        fours = [Int4(size, symmetric=True) for size in sorted(fitting, reverse=True)]
        return (*fours, Int8(columns))  # one scale a channel

    return choices


def _as_asked(one: Int4 | Int8, symmetric: bool | None) -> Int4 | Int8:
    return one if symmetric is None else msgspec.structs.replace(one, symmetric=symmetric)


def eight_bits(weights: Weights) -> Frontier:
    """For engines without four bits: nothing but eight."""
    return Frontier.of({group: [Choice(Int8(), 1, 0.0)] for group in weights.groups()})


def stand_in(precision: WeightPrecision) -> WeightPrecision:
    """What the CPU's kernels have in place of one scale per output channel."""
    return Int8() if precision == Int8(group_size=0) else precision
