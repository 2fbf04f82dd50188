"""Every transform on distributions of four tokens whose result is worked out by hand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from edgelm.runtime.generation.sampling.logits_processor import Row
from edgelm.runtime.generation.sampling.sampler import Sampler
from edgelm.runtime.generation.sampling.settings import Sampling
from edgelm.runtime.generation.sampling.transforms import log_softmax, softmax, transforms

FORBIDDEN = -math.inf


def row_of(probabilities: Sequence[float]) -> Row:
    """Logits whose softmax is the given distribution."""
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, dtype=np.float64)).astype(np.float32)


def probabilities(sampling: Sampling, row: Row, history: Sequence[int] = ()) -> list[float]:
    shares: list[float] = softmax(Sampler(sampling).transformed(row, history)).tolist()
    return shares


@pytest.mark.parametrize(
    ("sampling", "given", "expected"),
    [
        pytest.param(
            Sampling(temperature=1), [0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1], id="nothing"
        ),
        # p^2 / sum p^2 = 16, 9, 4, 1 of 30
        pytest.param(
            Sampling(temperature=0.5),
            [0.4, 0.3, 0.2, 0.1],
            [16 / 30, 9 / 30, 4 / 30, 1 / 30],
            id="temperature sharpens",
        ),
        # sqrt p: 4, 2, 1, 1 of 8
        pytest.param(
            Sampling(temperature=2),
            [16 / 22, 4 / 22, 1 / 22, 1 / 22],
            [4 / 8, 2 / 8, 1 / 8, 1 / 8],
            id="temperature flattens",
        ),
        pytest.param(
            Sampling(temperature=1, top_k=2), [0.2, 0.4, 0.1, 0.3], [0, 4 / 7, 0, 3 / 7], id="top-k"
        ),
        pytest.param(
            Sampling(temperature=1, top_k=1), [0.2, 0.4, 0.1, 0.3], [0, 1, 0, 0], id="top-1"
        ),
        pytest.param(
            Sampling(temperature=1, top_k=9), [0.2, 0.4, 0.1, 0.3], [0.2, 0.4, 0.1, 0.3], id="k > n"
        ),
        pytest.param(
            Sampling(temperature=1, top_k=2),
            [0.4, 0.25, 0.25, 0.1],
            [4 / 9, 2.5 / 9, 2.5 / 9, 0],
            id="top-k keeps ties at the edge",
        ),
        pytest.param(
            Sampling(temperature=1, top_p=0.6),
            [0.1, 0.5, 0.1, 0.3],
            [0, 5 / 8, 0, 3 / 8],
            id="top-p passes the mass",
        ),
        pytest.param(
            Sampling(temperature=1, top_p=0.75),
            [0.5, 0.25, 0.125, 0.125],
            [2 / 3, 1 / 3, 0, 0],
            id="top-p equals the mass",
        ),
        pytest.param(
            Sampling(temperature=1, top_p=1e-6),
            [0.2, 0.5, 0.2, 0.1],
            [0, 1, 0, 0],
            id="top-p keeps the best",
        ),
        pytest.param(
            Sampling(temperature=1, top_p=0),
            [0.2, 0.3, 0.2, 0.3],
            [0, 1, 0, 0],
            id="top-p of 0 keeps one",
        ),
        pytest.param(
            Sampling(temperature=1, min_p=0.45),
            [0.4, 0.2, 0.1, 0.3],
            [4 / 9, 2 / 9, 0, 3 / 9],
            id="min-p",
        ),
        pytest.param(
            Sampling(temperature=1, min_p=1),
            [0.4, 0.2, 0.4, 0],
            [0.5, 0, 0.5, 0],
            id="min-p of 1 keeps the best and its ties",
        ),
        # Entropy of 1/2, 1/4, 1/8, 1/8 is 1.75 bits; surprises 1, 2, 3, 3: the second is nearest.
        pytest.param(
            Sampling(temperature=1, typical_p=0.2),
            [0.5, 0.25, 0.125, 0.125],
            [0, 1, 0, 0],
            id="typical is not the most probable",
        ),
        pytest.param(
            Sampling(temperature=1, typical_p=0.7),
            [0.5, 0.25, 0.125, 0.125],
            [2 / 3, 1 / 3, 0, 0],
            id="typical until the mass",
        ),
        pytest.param(
            Sampling(temperature=1, logit_bias={1: math.log(2), 3: FORBIDDEN}),
            [0.4, 0.2, 0.2, 0.2],
            [0.4, 0.4, 0.2, 0],
            id="bias",
        ),
    ],
)
def test_transform(sampling: Sampling, given: list[float], expected: list[float]) -> None:
    assert probabilities(sampling, row_of(given)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("sampling", "history", "expected"),
    [
        # Positive logits are divided, negative multiplied; a second use changes nothing more.
        pytest.param(
            Sampling(repetition_penalty=2), [0, 2, 2], [1.0, 1.0, -2.0, -4.0], id="repetition"
        ),
        pytest.param(
            Sampling(repetition_penalty=0.5), [0, 2], [4.0, 1.0, -0.5, -4.0], id="repetition < 1"
        ),
        pytest.param(
            Sampling(frequency_penalty=0.5), [1, 1, 2], [2.0, 0.0, -1.5, -4.0], id="frequency"
        ),
        pytest.param(
            Sampling(presence_penalty=0.5), [1, 1, 2], [2.0, 0.5, -1.5, -4.0], id="presence"
        ),
        pytest.param(
            Sampling(frequency_penalty=-1, presence_penalty=0.5),
            [1, 1, 3],
            [2.0, 2.5, -1.0, -3.5],
            id="frequency and presence",
        ),
    ],
)
def test_penalty(sampling: Sampling, history: list[int], expected: list[float]) -> None:
    row = np.array([2.0, 1.0, -1.0, -4.0], dtype=np.float32)
    assert Sampler(sampling).transformed(row, history).tolist() == expected
    assert row.tolist() == [2.0, 1.0, -1.0, -4.0], "the model's own logits must stay"


def test_count_penalties_leave_the_prompt_out_and_repetition_counts_it() -> None:
    row = np.array([2.0, 2.0, 2.0, 2.0], dtype=np.float32)
    history = [0, 0, 1]
    counted = Sampling(frequency_penalty=0.5, presence_penalty=1)
    assert Sampler(counted, prompt_length=2).transformed(row, history).tolist() == [2, 0.5, 2, 2]
    repeated = Sampling(repetition_penalty=2)
    assert Sampler(repeated, prompt_length=2).transformed(row, history).tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("sampling", "given", "expected"),
    [
        # top-k leaves 4/9, 3/9, 2/9; of these 4/9 + 3/9 reach 0.75, of the whole they would not.
        pytest.param(
            Sampling(temperature=1, top_k=3, top_p=0.75),
            [0.4, 0.3, 0.2, 0.1],
            [4 / 7, 3 / 7, 0, 0],
            id="top-p counts what top-k left",
        ),
        # At temperature 1/2 the shares are 16, 9, 4, 1: 9/16 stays above 0.5, 4/16 does not.
        pytest.param(
            Sampling(temperature=0.5, min_p=0.5),
            [0.4, 0.3, 0.2, 0.1],
            [16 / 25, 9 / 25, 0, 0],
            id="min-p follows temperature",
        ),
        pytest.param(
            Sampling(temperature=1, logit_bias={0: FORBIDDEN}, top_k=2),
            [0.4, 0.3, 0.2, 0.1],
            [0, 0.6, 0.4, 0],
            id="top-k counts what the bias left",
        ),
        pytest.param(
            Sampling(temperature=1, logit_bias={0: FORBIDDEN}, top_p=0.5),
            [0.4, 0.3, 0.2, 0.1],
            [0, 1, 0, 0],
            id="top-p counts what the bias left",
        ),
        # Of all four, the second is nearest to the entropy (1.93 bits); of the two that top-k
        # leaves (0.94 bits), the first.
        pytest.param(
            Sampling(temperature=1, top_k=2, typical_p=0.2),
            [0.4, 0.22, 0.2, 0.18],
            [1, 0, 0, 0],
            id="typical counts what top-k left",
        ),
        pytest.param(
            Sampling(temperature=1, typical_p=0.2),
            [0.4, 0.22, 0.2, 0.18],
            [0, 1, 0, 0],
            id="typical without top-k",
        ),
    ],
)
def test_combination(sampling: Sampling, given: list[float], expected: list[float]) -> None:
    assert probabilities(sampling, row_of(given)) == pytest.approx(expected, abs=1e-6)


def test_defaults_do_nothing_and_choose_the_best() -> None:
    assert transforms(Sampling(), 0) == []
    assert Sampler(Sampling())(row_of([0.1, 0.2, 0.4, 0.3]), []) == 2


def test_greedy_takes_the_first_of_equals_and_heeds_bias_and_penalty() -> None:
    row = np.array([1.0, 3.0, 3.0, 2.0], dtype=np.float32)
    assert Sampler(Sampling())(row, []) == 1
    assert Sampler(Sampling(logit_bias={1: FORBIDDEN}))(row, []) == 2
    assert Sampler(Sampling(repetition_penalty=2))(row, [1, 2]) == 3


def test_log_softmax_is_exact_for_extreme_logits() -> None:
    row = np.array([1000.0, 1000.0, -1000.0, FORBIDDEN], dtype=np.float32)
    expected = [-math.log(2), -math.log(2), -2000 - math.log(2), FORBIDDEN]
    assert log_softmax(row).tolist() == pytest.approx(expected, rel=1e-12)
    assert softmax(row).tolist() == [0.5, 0.5, 0, 0]
