"""The search for the smallest mixture that passes the gate."""

from bisect import bisect
from collections.abc import Mapping, Sequence

from edgelm.bundle.records.gates import Figures
from edgelm.devices.kernels import Kernels
from edgelm.export.precision.bisect import SIZE_TOLERANCE, margin
from edgelm.export.precision.frontier import Choice, Frontier, choices_for
from edgelm.export.precision.legalize import Assignment
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import Int4, Int8, WeightPrecision, stored_bytes
from edgelm.spec.groups import expert_pair


class Search:
    """A position on a frontier of assignments, moved by the results on the gate's own text.

    Args:
        frontier: the assignments.
        unquantized: what every group is where even eight bits are too few.
        position: steps along the frontier; beyond its last everything is `unquantized`.

    Attributes:
        last_failed: the last position that failed the gate; -1 where none did.
    """

    def __init__(self, frontier: Frontier, unquantized: WeightPrecision, position: int = 0) -> None:
        self.frontier = frontier
        self.unquantized = unquantized
        self.position = position
        self.last_failed = -1

    @property
    def assignment(self) -> Assignment:
        """The assignment at this position."""
        if self.position > self.frontier.last_step:
            return dict.fromkeys(self.frontier.groups, self.unquantized)
        return self.frontier.at(self.position)

    def next_larger(self, figures: Figures) -> Assignment | None:
        """Move to more bits after a failure; None where nothing larger is left."""
        if self.position > self.frontier.last_step:
            return None
        self.last_failed = self.position
        if self.position == self.frontier.last_step:
            self.position += 1
            return self.assignment
        remaining = self.frontier.remaining_kl[self.position]
        enough = self.frontier.first_below(remaining * 0.97 / margin(figures))
        self.position = max(self.position + 1, enough)
        return self.assignment

    def next_smaller(self) -> Assignment | None:
        """Move halfway back to the last failure after a pass; None where little is to be gained."""
        sizes = self.frontier.sizes
        if self.last_failed < 0 or self.position > self.frontier.last_step:
            return None
        low, high = sizes[self.last_failed], sizes[self.position]
        if high - low <= SIZE_TOLERANCE * high:
            return None
        middle = bisect(sizes, (low + high) / 2, self.last_failed + 1, self.position)
        if middle == self.position:  # one step with all the bytes
            return None
        self.position = middle
        return self.assignment


def candidates_for(
    quantizer: Quantizer,
    kernels: Kernels,
    sensitivity: Mapping[str, float],
    measured: Int4,
    *,
    group_size: int | None,
    symmetric: bool | None,
) -> dict[str, list[Choice]]:
    """Every group's choices with an engine.

    Args:
        quantizer: of the source.
        kernels: the engine's.
        sensitivity: KL, in nats per token, of quantizing one group alone to `measured`.
        measured: that precision.
        group_size: what was requested.
        symmetric: what was requested.
    """
    choices = {}
    for group, kl in sensitivity.items():
        matrix, importance = quantizer.weights.matrix(group), quantizer.importance(group)
        formats = kernels.choices(matrix.shape[1], group_size=group_size, symmetric=symmetric)
        if quantizer.weights.experts(group):
            formats = _for_experts(quantizer.weights, group, formats)
            importance = importance if importance is None else importance.mean(0)
        choices[group] = choices_for(matrix, importance, kl, measured, formats)
    return choices


def _for_experts(
    weights: Weights, group: str, formats: Sequence[Int4 | Int8]
) -> tuple[Int4 | Int8, ...]:
    """The formats whose groups divide the inputs of both matrices of a layer's experts."""
    columns = [weights.columns(one) for one in expert_pair(group)]
    return tuple(one for one in formats if not any(size % one.group_size for size in columns))


def int8_only(weights: Weights) -> Frontier:
    """The frontier of an engine without four bits: one scale per output channel everywhere."""
    choices = {}
    for group in weights.groups():
        rows, columns = weights.shape(group)
        int8 = Int8(group_size=columns)
        choices[group] = [Choice(int8, stored_bytes(rows, columns, int8), 0.0)]
    return Frontier.from_choices(choices)


def cpu_equivalent(precision: WeightPrecision) -> WeightPrecision:
    """What the CPU's kernels have in place of one scale per output channel."""
    return Int8() if precision == Int8(group_size=0) else precision
