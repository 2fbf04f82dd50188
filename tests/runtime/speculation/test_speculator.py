"""When tokens are drafted and how many, from what runs cost and predictions were worth."""

from typing import Any, cast

import numpy as np
import pytest

from edgelm.errors import BadInput
from edgelm.runtime.speculation.acceptance import DraftAcceptance, MatchAcceptance
from edgelm.runtime.speculation.costs import SIZES, StepCosts
from edgelm.runtime.speculation.drafts.draft_model import DraftModel
from edgelm.runtime.speculation.mode import check_mode
from edgelm.runtime.speculation.speculator import SpeculationState, Speculator
from edgelm.speculation import SPECULATION_MODES

PART = list(range(100, 140))


def measured(per_token: float, single: float = 0.01) -> SpeculationState:
    """Costs as if each further token of a run took a share of the first."""
    state = SpeculationState()
    for _ in range(3):
        state.costs.single(single)
    for size in SIZES:
        for _ in range(3):
            state.costs.several(size, single * (1 + per_token * (size - 1)))
    return state


def test_a_long_match_is_drafted_as_far_as_it_pays() -> None:
    history = [1, 2, *PART, 3, *PART[:20]]
    cheap = Speculator("auto", measured(0.02), history).propose(15, None)
    assert cheap == PART[20:35]
    dear = Speculator("auto", measured(0.4), history).propose(15, None)
    assert 0 < len(dear) < 15
    assert Speculator("auto", measured(1.0), history).propose(15, None) == []


def test_no_more_is_drafted_than_there_is_room_for() -> None:
    speculator = Speculator("lookup", measured(0.02), [1, 2, *PART, 3, *PART[:20]])
    assert len(speculator.propose(4, None)) == 3  # 4 tokens are a size, 5 are not
    assert speculator.propose(0, None) == []


class _FullDraft:
    """A draft model whose context is full."""

    def room(self, length: int) -> int:
        return 0

    def propose(self, *_: Any) -> list[int]:
        return []


@pytest.mark.parametrize("share", [0.95, 0.1], ids=["pays", "trial"])
def test_beyond_the_draft_models_context_the_text_is_looked_up(share: float) -> None:
    state, full = measured(0.02), cast(DraftModel, _FullDraft())
    state.drafts = DraftAcceptance(share)
    history = [1, 2, *PART, 3, *PART[:20]]
    assert Speculator("auto", state, history).propose(15, full) == PART[20:35]
    assert Speculator("draft", state, history).propose(15, full) == []
    assert state.trials.due, "none was made"


def test_predictions_that_fail_end_drafting_within_a_few_tokens() -> None:
    history = [1, 2, 3, 4] * 10
    speculator = Speculator("auto", measured(0.15), history)
    assert speculator.propose(15, None)
    drafting = []
    for token in range(200, 240):  # nothing of it was predicted
        history += [1, 2, 3, token]
        for _ in range(4):
            speculator.update()
        drafting.append(bool(speculator.propose(15, None)))
    assert not any(drafting[4:])


def test_predictions_count_without_being_drafted() -> None:
    history = [1, 2, *PART, 3, 1, 2]
    speculator = Speculator("auto", measured(0.3), history)
    before = len(speculator.propose(15, None))
    for token in PART[:12]:
        history.append(token)
        speculator.update()
    assert len(speculator.propose(15, None)) > before


def test_before_a_single_run_was_timed_nothing_is_drafted() -> None:
    assert Speculator("auto", SpeculationState(), [1, 2, 3] * 20).propose(15, None) == []


def test_auto_stops_where_rows_are_rounded_differently_and_lookup_does_not() -> None:
    state = measured(0.02)
    history = [1, 2, 3] * 20
    rows = np.zeros((2, 4), np.float32)
    assert state.exactness.compare(4, rows, rows)
    assert Speculator("auto", state, history).propose(15, None)
    assert not state.exactness.compare(8, rows, rows + np.float32(1e-7))
    assert Speculator("auto", state, history).propose(15, None) == []
    assert Speculator("lookup", state, history).propose(15, None)


def test_a_disturbed_run_is_not_what_runs_cost() -> None:
    costs = StepCosts()
    for seconds in (0.01, 0.01, 1.0, 0.01, 0.01):
        costs.single(seconds)
    for seconds in (0.5, 0.02, 0.02, 0.02):
        costs.several(4, seconds)
    assert costs.ratio(4) == pytest.approx(2.0)


def test_unmeasured_sizes_are_assumed_from_smaller_ones() -> None:
    costs = StepCosts()
    for _ in range(3):
        costs.single(0.01)
    assert 1 < costs.ratio(2) < costs.ratio(4) < costs.ratio(16) < 16
    for _ in range(3):
        costs.several(4, 0.05)
    assert costs.ratio(4) == pytest.approx(5)
    assert costs.ratio(8) > 5


def test_one_slow_run_does_not_rule_a_size_out_for_ever() -> None:
    costs = StepCosts()
    for _ in range(3):
        costs.single(0.01)
    costs.several(4, 5.0)
    assert costs.ratio(4) < 3
    for _ in range(4):
        costs.several(4, 5.0)
    assert costs.ratio(4) == pytest.approx(500)
    for _ in range(256 * 5):
        costs.single(0.01)
    assert costs.ratio(4) < 3


def test_a_size_that_looked_slow_is_tried_again_while_others_are_used() -> None:
    costs = StepCosts()
    for _ in range(3):
        costs.single(0.01)
        for size in (2, 3, 8):
            costs.several(size, 0.02)
    for _ in range(2):  # other work ran beside it
        costs.several(4, 0.05)
    assert costs.ratio(4) == pytest.approx(5)
    for _ in range(300):  # a text that is drafted throughout has no runs of one token
        costs.several(8, 0.02)
    assert costs.ratio(4) < 3


def test_sizes_are_tried_from_the_smallest_on() -> None:
    costs = StepCosts()
    for _ in range(3):
        costs.single(0.01)
    assert costs.usable() == [2]
    costs.several(2, 0.015)
    assert costs.usable() == [2, 3]
    for size in SIZES:
        costs.several(size, 0.02)
    assert costs.usable() == list(SIZES)


def test_expected_tokens_by_hand() -> None:
    acceptance = DraftAcceptance()
    share = acceptance.expected(1)[1] - 1
    assert acceptance.expected(2)[2] == pytest.approx(1 + share + share**2)
    for _ in range(500):
        acceptance.observe(True)
    assert acceptance.expected(3)[3] == pytest.approx(4, rel=1e-3)


def test_shares_follow_what_is_seen_by_length_of_match() -> None:
    acceptance = MatchAcceptance()
    long, short = acceptance.share(20), acceptance.share(2)
    assert long > short
    for _ in range(200):
        acceptance.observe(2, True)
    assert acceptance.share(2) > 0.95
    assert acceptance.share(20) == long


@pytest.mark.parametrize("value", ["on", "", None, 1, ["auto"]])
def test_an_unknown_mode_names_the_known_ones(value: object) -> None:
    with pytest.raises(BadInput, match="expected one of auto, off, lookup, draft"):
        check_mode(value, has_draft=True)


def test_draft_needs_a_draft_model() -> None:
    assert [check_mode(mode, has_draft=True) for mode in SPECULATION_MODES]
    with pytest.raises(BadInput, match="--draft-for"):
        check_mode("draft", has_draft=False)
