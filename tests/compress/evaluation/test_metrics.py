"""Scores and paired differences against simulation and by hand."""

import math
import random
import statistics

import numpy as np
import pytest

from edgelm.compress.evaluation.metrics import (
    Metric,
    fraction_of,
    mean_of,
    perplexity_of,
    share_of,
    share_of_parts,
)
from edgelm.errors import BadInput


def test_equal_answers_differ_by_nothing_without_error() -> None:
    one = share_of([True, False, True])
    found = one.difference(one)
    assert (found.value, found.error, found.significant) == (0, 0, False)


def test_a_paired_difference_is_that_of_the_items() -> None:
    ours, theirs = [1.0, 4.0, 2.0, 7.0], [0.5, 4.5, 1.0, 5.0]
    found = mean_of(ours, "higher").difference(mean_of(theirs, "higher"))
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert found.value == pytest.approx(statistics.mean(gaps))
    assert found.error == pytest.approx(statistics.stdev(gaps) / 2)


def test_one_item_decides_nothing() -> None:
    found = share_of([True]).difference(share_of([False]))
    assert (found.value, found.significant) == (1, False)
    assert share_of([True] * 2).difference(share_of([False] * 2)).significant


def test_pairing_sees_what_two_errors_hide() -> None:
    rng = random.Random(0)
    easy = [rng.random() < 0.5 for _ in range(400)]
    worse = [one and rng.random() < 0.9 for one in easy]
    ours, theirs = share_of(worse), share_of(easy)
    found = ours.difference(theirs)
    apart = math.hypot(ours.score().error or 0, theirs.score().error or 0)
    assert found.significant
    assert found.error < 0.6 * apart


def test_the_error_of_a_ratio_is_that_of_repeated_draws() -> None:
    rng = random.Random(1)

    def drawn() -> Metric:
        items = []
        for _ in range(200):
            count, chance = rng.randint(1, 3), rng.choice([0.2, 0.9])  # parts of an item correlate
            items.append([rng.random() < chance for _ in range(count)])
        return share_of_parts(items)

    metrics = [drawn() for _ in range(200)]
    spread = statistics.stdev(metric.mean for metric in metrics)
    errors = [metric.score().error or 0 for metric in metrics]
    assert statistics.mean(errors) == pytest.approx(spread, rel=0.15)


def test_perplexities_are_compared_by_their_ratio() -> None:
    found = perplexity_of([1.1, 2.2, 3.3]).difference(perplexity_of([1.0, 2.0, 3.0]))
    assert found.ratio == pytest.approx(math.exp(0.2))
    gaps = [0.1, 0.2, 0.3]
    assert found.ratio_error == pytest.approx(math.exp(0.2) * statistics.stdev(gaps) / math.sqrt(3))


def test_figures_over_other_items_are_not_compared() -> None:
    with pytest.raises(BadInput, match="over 2 items cannot be compared with one over 3"):
        share_of([True] * 2).difference(share_of([True] * 3))


def test_a_broken_model_has_finite_figures() -> None:
    """Thousands of nats per token: e to their power is beyond a float, and JSON has no infinity."""
    broken, whole = perplexity_of([3000.0, 5000.0]), perplexity_of([2.0, 3.0])
    score, gap = broken.score(), broken.difference(whole)
    assert score.error is not None
    figures = (score.value, score.error, gap.value, gap.error, gap.ratio, gap.ratio_error)
    assert all(one is not None and math.isfinite(one) for one in figures)
    assert score.value > 1e200
    assert not gap.significant, "4,000 nats, but two items differ by as much"


@pytest.mark.parametrize("factor", [1, -1])
def test_worse_by_a_factor_counts_as_much_as_better_by_it(factor: int) -> None:
    """2.0 nats with an error of 0.6: the perplexity is 7 times as large, or a seventh."""
    gaps = [2.0 + one for one in (-1.2, 1.2, -1.2, 1.2, 0.0)]
    theirs = [5.0] * len(gaps)
    ours = [other + factor * gap for other, gap in zip(theirs, gaps, strict=True)]
    found = perplexity_of(ours).difference(perplexity_of(theirs))
    assert found.ratio == pytest.approx(math.exp(2 * factor))
    assert found.significant
    less = [
        other + factor * gap / 10 + noise
        for other, gap, noise in zip(theirs, gaps, (1, -1, 1, -1, 0), strict=True)
    ]
    assert not perplexity_of(less).difference(perplexity_of(theirs)).significant


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_not_the_best_one(loss: float) -> None:
    broken, whole = perplexity_of([loss, 1.0, 2.0]), perplexity_of([1.0, 1.0, 2.0])
    score, gap = broken.score(), broken.difference(whole)
    assert score.value > 1e200
    assert gap.value > 1e200
    assert gap.ratio is not None
    assert gap.ratio > 1
    assert all(map(math.isfinite, (score.error or 0, gap.error, gap.ratio, gap.ratio_error or 0)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_divergence_that_is_not_finite_is_not_the_best_one(value: float) -> None:
    broken, whole = mean_of([value, 0.1, 0.2], "lower"), mean_of([0.1, 0.1, 0.2], "lower")
    score, gap = broken.score(), broken.difference(whole)
    assert score.value > 1000
    assert gap.value > 1000
    assert math.isfinite(score.error or 0)
    assert mean_of([value, 0.1], "higher").mean < -1000


def test_ratios_of_the_same_items() -> None:
    """Against a bootstrap over items; the errors alone would give more than twice as much."""
    rng = np.random.default_rng(0)
    hard = rng.random(2000)
    theirs, ours = hard < 0.6, hard + rng.normal(0, 0.05, 2000) < 0.5
    a, b = share_of(ours.tolist()), share_of(theirs.tolist())
    found = a.ratio(b)
    assert found is not None
    samples = rng.integers(0, 2000, (2000, 2000))
    spread = (ours[samples].mean(1) / theirs[samples].mean(1)).std()
    assert found[0] == pytest.approx(ours.mean() / theirs.mean())
    assert found[1] == pytest.approx(spread, rel=0.1)
    own = (a.score().error or 0, b.score().error or 0)
    apart = found[0] * math.hypot(own[0] / a.mean, own[1] / b.mean)
    assert apart > 2 * found[1]
    losses = rng.random(50) + 2
    worse = losses + 0.1
    ratio = perplexity_of(worse.tolist()).ratio(perplexity_of(losses.tolist()))
    assert ratio is not None
    assert ratio[0] == pytest.approx(math.exp(0.1))
    assert ratio[1] == pytest.approx(0, abs=1e-12)


def test_what_has_no_ratio() -> None:
    assert share_of([True]).ratio(share_of([False])) is None
    assert share_of([True]).ratio(share_of([True, False])) is None
    assert share_of([True]).ratio(fraction_of([1.0])) is None
