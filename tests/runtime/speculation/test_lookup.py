"""Prompt lookup against a plain search through the history."""

import numpy as np
import pytest

from edgelm.runtime.speculation.lookup import PromptLookup

ORDERS = (6, 3, 2)


def search(history: list[int]) -> int | None:
    """Where the longest context at the end of the history was last continued."""
    end = len(history)
    for order in ORDERS:
        context = history[end - order :]
        for position in range(end - 1, order - 1, -1):
            if end >= order and history[position - order : position] == context:
                return position
    return None


@pytest.mark.parametrize("seed", range(20))
def test_a_prompt_is_searched_as_a_plain_loop_does(seed: int) -> None:
    history = np.random.default_rng(seed).integers(0, 4, 40).tolist()
    found = search(history)
    lookup = PromptLookup(history)
    assert lookup.predicted() == (None if found is None else history[found])


@pytest.mark.parametrize("seed", range(20))
def test_token_by_token_the_pointer_moves_or_is_looked_up_again(seed: int) -> None:
    tokens = np.random.default_rng(seed).integers(0, 5, 80).tolist()
    history = tokens[:10]
    lookup = PromptLookup(history)
    pointer = search(history)
    for token in tokens[10:]:
        expected = None if pointer is None else history[pointer] == token
        history.append(token)
        assert lookup.update() is expected
        pointer = pointer + 1 if expected and pointer is not None else search(history)
        assert lookup.predicted() == (None if pointer is None else history[pointer])


def test_a_match_counts_all_equal_tokens_before_it() -> None:
    part = list(range(100, 140))
    lookup = PromptLookup([1, 2, *part, 3, *part[:10]])
    assert lookup.matched == 10
    assert lookup.draft(5) == part[10:15]


def test_a_short_or_new_history_predicts_nothing() -> None:
    for history in ([], [1], [1, 2], list(range(50))):
        lookup = PromptLookup(history)
        assert lookup.predicted() is None
        assert lookup.draft(4) == []
        assert lookup.matched == 0


def test_a_loop_is_expected_to_run_on() -> None:
    lookup = PromptLookup([9, 1, 2, 3, 1, 2, 3])
    assert lookup.draft(8) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_an_unpredicted_token_is_no_mistake() -> None:
    history = [1, 2, 3]
    lookup = PromptLookup(history)
    history.append(4)
    assert lookup.update() is None
