"""Figures of a task item by item: from them follow means, standard errors and paired differences.

Two models that answer the same questions fail on much the same ones, so that the error of the
difference of their figures is far smaller than each figure's own (Miller 2024, arXiv 2411.00640).
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from edgelm.compress.evaluation.tasks.scores import Score
from edgelm.errors import BadInput
from edgelm.perplexity import exponential

Better = Literal["lower", "higher"]
_NOT_FINITE = 1e4  # what counts for a value that is NaN or infinite; of a loss, nats
Form = Literal["share", "fraction", "mean", "exp"]


class Difference(msgspec.Struct, frozen=True):
    """One model's figure minus another's on the same items, and its standard error.

    `ratio` is one over the other where that is the usual comparison (perplexity), with
    `ratio_error`.
    """

    value: float
    error: float
    n: int
    ratio: float | None = None
    ratio_error: float | None = None

    @property
    def significant(self) -> bool:
        """Whether it is more than two standard errors; of one item, no error is known.

        Of perplexities, the logarithm of the ratio is compared with its error: the test is then the
        same for a model that is better by a factor, and for one that is worse by it.
        """
        if self.ratio is not None and self.ratio_error is not None:
            gap, error = math.log(self.ratio), self.ratio_error / self.ratio
        else:
            gap, error = self.value, self.error
        return self.n > 1 and abs(gap) > 2 * error


class Metric(msgspec.Struct, frozen=True):
    """One figure of a task: the sum of `sums` over the sum of `counts`, an entry per item.

    form: `share` of successes, `fraction` (mean of values from 0 to 1), `mean`, or `exp` of a mean
    (perplexity from losses).
    """

    sums: tuple[float, ...]
    counts: tuple[int, ...]
    better: Better
    form: Form

    @property
    def mean(self) -> float:
        """The ratio of the sums."""
        return math.fsum(self.sums) / sum(self.counts)

    def score(self) -> Score:
        """The figure with its standard error; items are independent, parts of one item are not."""
        value, total = self.mean, sum(self.counts)
        if self.form == "share" and total == len(self.counts):
            error = math.sqrt(value * (1 - value) / total)
        else:
            error = _standard_error(self._influences())
        if self.form == "exp":
            value = exponential(value)
            error *= value
        return Score(value, error, total, self.better, self.form in ("share", "fraction"))

    def difference(self, other: "Metric") -> Difference:
        """Compare with the other's figure, item by item: ours minus theirs.

        Raises:
            BadInput: the two have other items.
        """
        if len(self.sums) != len(other.sums):
            raise BadInput(
                f"a figure over {len(self.sums)} items cannot be compared with one over "
                f"{len(other.sums)}; run both on the same task and limit"
            )
        pairs = zip(self._influences(), other._influences(), strict=True)
        error = _standard_error([a - b for a, b in pairs])
        gap, n = self.mean - other.mean, len(self.sums)
        if self.form != "exp":
            return Difference(gap, error, n)
        ours, theirs, ratio = exponential(self.mean), exponential(other.mean), exponential(gap)
        # To first order, both by the error of the difference of the logarithms.
        return Difference(ours - theirs, error * ours, n, ratio, error * ratio)

    def ratio(self, other: "Metric") -> tuple[float, float] | None:
        """Our figure over the other's on the same items, and its standard error, to first order.

        None if the items differ, or the other's figure is zero or infinite.
        """
        if self.form != other.form or self.counts != other.counts:
            return None
        if self.form == "exp":
            gap = self.difference(other)
            pair = gap.ratio, gap.ratio_error
        else:
            ours, theirs = self.mean, other.mean
            if theirs == 0:
                return None
            found = ours / theirs
            pairs = zip(self._influences(), other._influences(), strict=True)
            error = _standard_error([a - found * b for a, b in pairs]) / abs(theirs)
            pair = found, error
        value, error_of_it = pair
        if value is None or error_of_it is None or not math.isfinite(value + error_of_it):
            return None
        return value, error_of_it

    def _influences(self) -> list[float]:
        """What each item moves the ratio by, to first order."""
        mean, total = self.mean, sum(self.counts)
        pairs = zip(self.sums, self.counts, strict=True)
        return [(one - mean * count) / total for one, count in pairs]


def share_of(right: Sequence[bool], better: Better = "higher") -> Metric:
    """The share of successes, one per item."""
    return Metric(tuple(map(float, right)), (1,) * len(right), better, "share")


def share_of_parts(parts: Sequence[Sequence[bool]]) -> Metric:
    """The share of successes where an item has several."""
    counts = tuple(map(len, parts))
    return Metric(tuple(float(sum(one)) for one in parts), counts, "higher", "share")


def fraction_of(values: Sequence[float]) -> Metric:
    """The mean of a value from 0 to 1 per item; 1 is best."""
    return Metric(tuple(values), (1,) * len(values), "higher", "fraction")


def mean_of(values: Sequence[float], better: Better) -> Metric:
    """The mean of a value per item; one that is not finite counts as a very bad one."""
    worst = _NOT_FINITE if better == "lower" else -_NOT_FINITE
    return Metric(_finite(values, worst), (1,) * len(values), better, "mean")


def perplexity_of(losses: Sequence[float]) -> Metric:
    """Exp of the mean of a loss per item; one that is not finite counts as a very large one."""
    return Metric(_finite(losses, _NOT_FINITE), (1,) * len(losses), "lower", "exp")


def _finite(values: Sequence[float], otherwise: float) -> tuple[float, ...]:
    return tuple(one if math.isfinite(one) else otherwise for one in values)


def _standard_error(influences: Sequence[float]) -> float:
    n = len(influences)
    return math.sqrt(math.fsum(one * one for one in influences) * n / max(1, n - 1))
