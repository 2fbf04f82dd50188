"""Generations on a simulated clock: no text is slower with speculation than 0.97 of without."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgelm.runtime.speculation.costs import StepCosts
from edgelm.runtime.speculation.speculator import SpeculationState, Speculator

SINGLE = 0.01
LENGTH = 1200


def words(seed: int) -> list[int]:
    """Text that repeats short parts by chance: most predictions are wrong."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = (rng.zipf(1.3, LENGTH) % 60).tolist()
    return tokens


def chain(seed: int) -> list[int]:
    """Text of a Markov chain: what followed last time follows again half of the time."""
    rng = np.random.default_rng(seed)
    usual = rng.permutation(30)
    tokens = [0]
    while len(tokens) < LENGTH:
        common = rng.random() < 0.5
        tokens.append(int(usual[tokens[-1]]) if common else int(rng.integers(30)))
    return tokens


def copied(seed: int) -> list[int]:
    """New text, then the same once more with one token in 40 changed."""
    rng = np.random.default_rng(seed)
    part = rng.integers(0, 30_000, LENGTH // 2)
    changed = np.where(rng.random(len(part)) < 1 / 40, part + 1, part)
    return [*part.tolist(), *changed.tolist()]


def fresh(seed: int) -> list[int]:
    """Text that repeats nothing."""
    tokens: list[int] = np.random.default_rng(seed).integers(0, 1_000_000, LENGTH).tolist()
    return tokens


def gain(text: list[int], per_token: float, noise: float = 0.0, start: int = 20) -> float:
    """Time without speculation over that with it, for all tokens behind the first `start`.

    A run of k tokens takes 1 + per_token * (k - 1) of a single one, which nobody knows at first.
    """
    rng = np.random.default_rng(7)
    state, history = SpeculationState(), text[:start]
    speculator = Speculator("lookup", state, history)
    elapsed = 0.0

    def run(size: int) -> float:
        return SINGLE * (1 + per_token * (size - 1)) * float(1 + noise * rng.exponential())

    def take() -> None:
        history.append(text[len(history)])
        speculator.update()

    while len(history) < len(text):
        drafts = speculator.propose(min(15, len(text) - len(history) - 1), None)
        seconds = run(1 + len(drafts))
        elapsed += seconds
        if not drafts:
            state.costs.single(seconds)
            take()
            continue
        expected = text[len(history) : len(history) + len(drafts)]
        right = next(
            (n for n, pair in enumerate(zip(drafts, expected, strict=True)) if pair[0] != pair[1]),
            len(drafts),
        )
        speculator.ran(1 + len(drafts), seconds)
        speculator.settled(0.0)
        for _ in range(min(right + 1, len(text) - len(history))):
            take()
    return (len(text) - start) * SINGLE * (1 + noise) / elapsed


@pytest.mark.parametrize("text", [words, chain, copied, fresh], ids=lambda one: one.__name__)
@pytest.mark.parametrize("per_token", [0.05, 0.15, 0.3, 0.6, 1.0])
def test_no_text_is_slower(text: Callable[[int], list[int]], per_token: float) -> None:
    assert min(gain(text(seed), per_token) for seed in range(3)) >= 0.97


@pytest.mark.parametrize("text", [words, chain, copied, fresh], ids=lambda one: one.__name__)
def test_nor_where_times_vary(text: Callable[[int], list[int]]) -> None:
    gains = [gain(text(seed), 0.2, noise=0.3) for seed in range(5)]
    assert np.mean(gains) >= 0.97


@pytest.mark.parametrize(("per_token", "least"), [(0.05, 3.0), (0.15, 2.0), (0.3, 1.5)])
def test_a_copied_half_is_quick(per_token: float, least: float) -> None:
    assert gain(copied(1), per_token, start=LENGTH // 2) >= least


class _SimulatedDraft:
    """A draft model on the simulated clock: it reads new text, and is right or always wrong."""

    def __init__(self) -> None:
        self.elapsed, self.read, self.right = 0.0, 0, False
        self.text: list[int] = []
        self.proposals = 0

    def room(self, length: int) -> int:
        return 10**6

    def propose(self, history: list[int], count: int, costs: StepCosts, _: Any = None) -> list[int]:
        self.proposals += 1
        seconds = [0.02 * SINGLE * (len(history) - self.read)] + [0.3 * SINGLE] * (count - 1)
        for one in seconds[1:]:
            costs.drafted(one)
        self.elapsed += sum(seconds)
        self.read = len(history)
        expected = self.text[len(history) : len(history) + count]
        return expected if self.right else [-1] * len(expected)


def _generation(state: SpeculationState, draft: _SimulatedDraft, prompt: int, answer: int) -> float:
    """Time of one answer without speculation over that with it."""
    draft.text = fresh(prompt)[: prompt + answer]
    history, before = draft.text[:prompt], draft.elapsed
    draft.read = 0
    speculator = Speculator("draft", state, history)
    model: Any = draft
    elapsed = 0.0
    while len(history) < len(draft.text):
        drafts = speculator.propose(min(15, len(draft.text) - len(history) - 1), model)
        seconds = SINGLE * (1 + 0.12 * len(drafts))
        elapsed += seconds
        if drafts:
            speculator.ran(1 + len(drafts), seconds)
            speculator.settled(0.0)
        else:
            state.costs.single(seconds)
        taken = len(drafts) + 1 if draft.right else 1
        for number in range(taken):
            if number < len(drafts):
                speculator.compared(draft.right)
            history.append(draft.text[len(history)])
            speculator.update()
    return answer * SINGLE / (elapsed + draft.elapsed - before)


def test_a_draft_model_that_is_never_right_costs_nothing_in_the_long_run() -> None:
    """Each answer is short and its prompt long, so that one trial per answer would be a loss."""
    state, draft = SpeculationState(), _SimulatedDraft()
    gains = [_generation(state, draft, prompt=300, answer=150) for _ in range(40)]
    assert np.mean(gains[:10]) >= 0.96
    assert np.mean(gains) >= 0.985
    assert min(gains[-30:]) >= 0.93, "an answer in which it was tried"
    draft.right = True
    gains = [_generation(state, draft, prompt=300, answer=150) for _ in range(40)]
    assert gains[-1] > 1.5, "it was tried again"
    draft.right, draft.proposals = False, 0
    gains = [_generation(state, draft, prompt=300, answer=150) for _ in range(3)]
    assert draft.proposals < 40, "what was right before is given up within an answer"
