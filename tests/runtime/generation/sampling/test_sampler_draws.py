"""Draws: frequencies against exact probabilities, seeds, and settings that mean nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest

from edgelm.errors import BadInput
from edgelm.runtime.generation.sampling.sampler import Sampler
from edgelm.runtime.generation.sampling.settings import Sampling

ROW = np.log(np.array([0.4, 0.3, 0.2, 0.1])).astype(np.float32)
DRAWS = 20_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1, seed=1), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(temperature=0.5, seed=2), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (Sampling(temperature=1, top_k=2, seed=3), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(temperature=1, top_p=0.85, seed=4), [4 / 9, 3 / 9, 2 / 9, 0]),
        (Sampling(temperature=1, logit_bias={0: -math.inf}, seed=5), [0, 3 / 6, 2 / 6, 1 / 6]),
    ],
    ids=["plain", "temperature", "top-k", "top-p", "forbidden"],
)
def test_frequencies(sampling: Sampling, expected: list[float]) -> None:
    sampler = Sampler(sampling)
    counts = np.bincount([sampler(ROW, []) for _ in range(DRAWS)], minlength=4)
    for count, probability in zip(counts, expected, strict=True):
        # Four standard deviations of a binomial share; an impossible token is never drawn.
        spread = math.sqrt(probability * (1 - probability) / DRAWS)
        assert abs(count / DRAWS - probability) <= 4 * spread


def test_the_same_seed_draws_the_same_tokens() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1, seed=seed))
        return [sampler(ROW, []) for _ in range(50)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)  # alike once in 4^50


def test_draws_do_not_touch_numpy_s_global_state() -> None:
    np.random.seed(0)
    before = np.random.random()
    np.random.seed(0)
    Sampler(Sampling(temperature=1, seed=3))(ROW, [])
    assert np.random.random() == before


@pytest.mark.parametrize("temperature", [1e-3, 1e-9, 1e-30, 1e-40])
def test_a_low_temperature_is_as_good_as_greedy(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature, seed=0))
    assert {sampler(ROW, []) for _ in range(100)} == {0}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", -0.1, "at least 0"),
        ("temperature", math.inf, "at least 0"),
        ("temperature", math.nan, "at least 0"),
        ("top_k", -1, "at least 0"),
        ("top_p", -0.1, "between 0 and 1"),
        ("top_p", 1.1, "between 0 and 1"),
        ("min_p", -0.1, "between 0 and 1"),
        ("min_p", 1.1, "between 0 and 1"),
        ("typical_p", 0.0, "above 0 and at most 1"),
        ("typical_p", 2.0, "above 0 and at most 1"),
        ("repetition_penalty", 0.0, "above 0"),
        ("repetition_penalty", math.inf, "above 0"),
        ("frequency_penalty", -2.1, "between -2 and 2"),
        ("frequency_penalty", 2.1, "between -2 and 2"),
        ("presence_penalty", -2.1, "between -2 and 2"),
        ("presence_penalty", math.nan, "between -2 and 2"),
    ],
)
def test_values_that_mean_nothing(name: str, value: float, expected: str) -> None:
    sampling = replace(Sampling(), **{name: value})  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=f"{name} is {value!r}, expected a number {expected}$"):
        sampling.check(4)


@pytest.mark.parametrize("token", [-1, 4])
def test_bias_outside_the_vocabulary(token: int) -> None:
    message = f"logit_bias names token {token}, the vocabulary has 4"
    with pytest.raises(BadInput, match=message):
        Sampling(logit_bias={token: 1.0}).check(4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bias_that_is_no_number(value: float) -> None:
    with pytest.raises(BadInput, match="logit_bias"):
        Sampling(logit_bias={1: value}).check(4)


def test_negative_seed() -> None:
    with pytest.raises(BadInput, match="seed is -1"):
        Sampling(seed=-1).check(4)


def test_valid_extremes_pass() -> None:
    Sampling(
        temperature=0,
        top_k=0,
        top_p=1,
        min_p=1,
        typical_p=1,
        frequency_penalty=-2,
        presence_penalty=2,
        logit_bias={0: -math.inf, 3: 100.0},
        seed=0,
    ).check(4)
