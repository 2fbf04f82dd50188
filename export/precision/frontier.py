"""Which precision for which group: the least divergence for every size.

Each group can be stored in several ways, each with its bytes and the KL it is expected to cost. KL
adds up over groups to a good approximation, which makes this a multiple-choice knapsack. Its
Lagrangian solutions are all of one path: of each group only the choices on the lower convex hull
of (bytes, KL) matter, and the steps along all hulls are taken in order of KL saved per byte. The
path serves two questions: the best within a budget, and the smallest that passes a gate.

What a choice costs is not measured one by one. The KL of one choice is (see
`edgelm.export.precision.sensitivity`), and others follow it in proportion to their weighted squared
error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from edgelm.errors import DoesNotFit
from edgelm.quantize.precision import Int4, Int8, WeightPrecision, stored_bytes
from edgelm.quantize.rtn import quantize
from edgelm.spec.groups import expert_pair

_ROWS = 128  # of a matrix on which choices are compared: errors of rows are much alike


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to store a group: its size, and the KL it is expected to cost, in nats per token."""

    precision: Int4 | Int8
    size_bytes: int
    kl: float


@dataclass(frozen=True, slots=True)
class Step:
    """A group moves up to a choice; KL saved and bytes added are those of the move."""

    group: str
    choice: Choice
    saved: float
    added_bytes: int


@dataclass(frozen=True)
class Frontier:
    """Assignments from the smallest to the best, each one step from the one before.

    start: every group's smallest choice.
    steps: moves in order of KL saved per byte.
    tied: a group that follows another one, and that other.
    """

    start: Mapping[str, Choice]
    steps: tuple[Step, ...]
    tied: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_choices(cls, choices: Mapping[str, Sequence[Choice]]) -> "Frontier":
        """The frontier through every group's choices; experts of a layer move together."""
        choices, tied = _with_experts_tied(choices)
        hulls = {group: _hull(each) for group, each in choices.items()}
        steps = [
            Step(group, after, before.kl - after.kl, after.size_bytes - before.size_bytes)
            for group, hull in hulls.items()
            for before, after in pairwise(hull)
        ]
        # Steps of one hull save ever less per byte, so a stable sort keeps them in order.
        steps.sort(key=lambda step: -step.saved / step.added_bytes)
        return cls({group: hull[0] for group, hull in hulls.items()}, tuple(steps), tied)

    @property
    def groups(self) -> tuple[str, ...]:
        """Every group."""
        return (*self.start, *self.tied)

    @property
    def last_step(self) -> int:
        """How many steps there are."""
        return len(self.steps)

    @property
    def remaining_kl(self) -> list[float]:
        """The expected KL after each number of steps."""
        remaining = [sum(choice.kl for choice in self.start.values())]
        for step in self.steps:
            remaining.append(max(0.0, remaining[-1] - step.saved))
        return remaining

    @property
    def sizes(self) -> list[int]:
        """Bytes after each number of steps."""
        sizes = [sum(choice.size_bytes for choice in self.start.values())]
        for step in self.steps:
            sizes.append(sizes[-1] + step.added_bytes)
        return sizes

    def at(self, steps: int) -> dict[str, WeightPrecision]:
        """The assignment after a number of steps."""
        taken = self._smallest()
        taken.update((step.group, step.choice.precision) for step in self.steps[:steps])
        return self._with_tied(taken)

    def first_below(self, kl: float) -> int:
        """Fewest steps until at most `kl` is expected; `last_step` if that is never so."""
        remaining = enumerate(self.remaining_kl)
        return next((steps for steps, left in remaining if left <= kl), self.last_step)

    def within(self, budget_bytes: int) -> dict[str, WeightPrecision]:
        """The best assignment of at most `budget_bytes`.

        A step that does not fit is skipped for later ones that do, and its group stays where it
        is.

        Raises:
            DoesNotFit: even the smallest choices are larger.
        """
        used = sum(choice.size_bytes for choice in self.start.values())
        if used > budget_bytes:
            raise DoesNotFit(
                f"the smallest mixture has {used / 1e6:,.1f} MB of weights, "
                f"{budget_bytes / 1e6:,.1f} MB are allowed; allow more, or prune the model first"
            )
        taken = self._smallest()
        skipped: set[str] = set()
        for step in self.steps:
            if step.group in skipped or used + step.added_bytes > budget_bytes:
                skipped.add(step.group)
                continue
            used += step.added_bytes
            taken[step.group] = step.choice.precision
        return self._with_tied(taken)

    def _with_tied(self, taken: dict[str, WeightPrecision]) -> dict[str, WeightPrecision]:
        return taken | {follower: taken[group] for follower, group in self.tied.items()}

    def _smallest(self) -> dict[str, WeightPrecision]:
        return {group: choice.precision for group, choice in self.start.items()}


def _with_experts_tied(
    choices: Mapping[str, Sequence[Choice]],
) -> tuple[dict[str, Sequence[Choice]], dict[str, str]]:
    """Choices with those of each layer's experts added up, and which group follows which."""
    result, tied = dict(choices), dict[str, str]()
    for group in choices:
        if not group.endswith(".experts.gate_up"):
            continue
        follower = expert_pair(group)[1]
        others = {choice.precision: choice for choice in result.pop(follower)}
        tied[follower] = group
        result[group] = [
            Choice(
                one.precision,
                one.size_bytes + others[one.precision].size_bytes,
                one.kl + others[one.precision].kl,
            )
            for one in choices[group]
        ]
    return result, tied


def choices_for(
    weight: torch.Tensor,
    importance: torch.Tensor | None,
    kl: float,
    measured: Int4 | Int8,
    formats: Sequence[Int4 | Int8],
) -> list[Choice]:
    """Choices for a matrix [N, K], of which one has been measured to cost `kl`.

    Errors of rounding to nearest are compared: better methods make all of them smaller by much
    the same factor.
    """
    sample = weight[:: max(1, len(weight) // _ROWS)]
    errors = {one: _error(sample, importance, one) for one in {measured, *formats}}
    unit = max(errors[measured], 1e-30)
    rows, columns = weight.shape
    return [
        Choice(one, stored_bytes(rows, columns, one), kl * errors[one] / unit) for one in formats
    ]


def _error(weight: torch.Tensor, importance: torch.Tensor | None, precision: Int4 | Int8) -> float:
    stored = quantize(weight, precision, importance).dequantize(weight.shape[1])
    squares = (stored - weight).square()
    return float((squares if importance is None else squares * importance).sum())


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """The lower convex hull, from the smallest choice to the best."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.size_bytes, choice.kl)):
        if hull and choice.kl >= hull[-1].kl:
            continue
        while len(hull) > 1 and _slope(hull[-2], choice) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(before: Choice, after: Choice) -> float:
    return (after.kl - before.kl) / (after.size_bytes - before.size_bytes)
