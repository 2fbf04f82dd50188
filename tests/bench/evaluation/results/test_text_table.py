"""The forms of figures in the table of `edge-eval`."""

import pytest

from edgelm.bench.evaluation.results.text_table import difference_text, score_text
from edgelm.compress.evaluation.metrics import (
    Metric,
    fraction_of,
    mean_of,
    perplexity_of,
    share_of,
)
from edgelm.compress.evaluation.tasks.scores import Score


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (share_of([True, True, False, True]), "75.0 ± 21.7% (n 4)"),
        (share_of([False] * 4, "lower"), "0.0 ± 0.0% (n 4)"),
        (fraction_of([0.25, 0.5, 0.75]), "50.0 ± 14.4% (n 3)"),
        (mean_of([1.0, 0.6, 0.2], "higher"), "0.6000 ± 0.2309 (n 3)"),
        (mean_of([0.01, 0.03], "lower"), "0.0200 ± 0.0100 (n 2)"),
        (mean_of([0.0000123, 0.0000135], "lower"), "0.000013 ± 0.000001 (n 2)"),
        (mean_of([0.0, 0.0], "lower"), "0.0000 ± 0.0000 (n 2)"),
        (perplexity_of([2.0, 2.0]), "7.39 ± 0.00 (n 2)"),
    ],
    ids=["share", "error-rate", "fraction", "mean", "kl", "small-kl", "zero", "perplexity"],
)
def test_values(metric: Metric, text: str) -> None:
    assert score_text(metric.score()) == text


def test_differences_have_the_unit_of_their_figure() -> None:
    ours, theirs = share_of([True, False], "lower"), share_of([False, False], "lower")
    assert difference_text(ours.difference(theirs), ours.score()) == "+50.0 ± 50.0 points"
    kl = mean_of([0.1, 0.2], "lower")
    assert difference_text(kl.difference(mean_of([0.1, 0.1], "lower")), kl.score()) == (
        "+0.0500 ± 0.0500"
    )


def test_a_broken_models_perplexity_is_short() -> None:
    score = Score(3.77e260, 1.2e258, 24, "lower")
    assert score_text(score) == "3.77e+260 ± 1.20e+258 (n 24)"
