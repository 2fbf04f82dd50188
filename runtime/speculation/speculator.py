"""The speculation of one generation: whether to draft, how many tokens, and from where.

A run of the engine with n drafted tokens gives 1 to n + 1 tokens. How many to expect follows from
how often predictions were right, what it costs from measured times; drafting is worth it where
tokens per time exceed those of single runs. Both are measured throughout, so a generation whose
text repeats nothing drafts nothing, and one that begins to copy drafts at once.

Drafted tokens are accepted by running the sampler as always: it chooses a token from each row of
logits in turn, and the next row is used if it chose the drafted one. For a draft of certain
tokens that is the rejection rule of speculative sampling (arXiv 2211.17192): a token is accepted
with its probability under the model, and what replaces it has the rest of the distribution.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from edgelm.runtime.speculation.acceptance import DraftAcceptance, MatchAcceptance
from edgelm.runtime.speculation.costs import StepCosts
from edgelm.runtime.speculation.drafts.draft_model import Draft
from edgelm.runtime.speculation.exactness import Exactness
from edgelm.runtime.speculation.lookup import PromptLookup
from edgelm.runtime.speculation.trials import DraftTrials
from edgelm.runtime.speculation.value_lookup import ValueLookup
from edgelm.speculation import SIZES, SpeculationMode

_MIN_GAIN = 1.1  # below it nothing is drafted: the estimates are not that sure


class SpeculationState:
    """What the generations of a model share.

    Measured costs, whether rows are exact, and how good its draft model was.
    """

    def __init__(self) -> None:
        self.costs = StepCosts()
        self.drafts = DraftAcceptance()
        self.trials = DraftTrials()
        self.exactness = Exactness()


class _Plan(NamedTuple):
    drafts: int
    gain: float  # tokens per time, over that of single runs
    trial: bool = False


class Speculator:
    """Drafts tokens for one generation.

    Args:
        mode: where from; with `auto` also only where the answer stays the same bit for bit.
        state: of the model.
        history: tokens so far, those of the prompt; the list that the generation appends to.
        values: predicts JSON answers from the same history; used with the modes of lookup.
    """

    def __init__(
        self,
        mode: SpeculationMode,
        state: SpeculationState,
        history: Sequence[int],
        values: ValueLookup | None = None,
    ) -> None:
        self.mode = mode
        self.state = state
        self._history = history
        self._lookup = PromptLookup(history) if mode in ("auto", "lookup") else None
        self._matches = MatchAcceptance()
        self._values = None if self._lookup is None else values
        self._in_values = MatchAcceptance()
        self._drafts = DraftAcceptance(state.drafts.share)
        self._from_model = False
        self._size, self._seconds = 0, 0.0  # the last run, until what it costs is known
        self.drafted = self.accepted = 0

    @property
    def allowed(self) -> bool:
        """Whether drafting could still be useful."""
        return self.mode != "auto" or self.state.exactness.exact

    def update(self) -> None:
        """Take note of one more token of the history."""
        self.state.trials.passed()
        if not self.allowed:  # and never will be
            return
        if self._lookup is not None:
            matched = self._lookup.matched
            right = self._lookup.update()
            if right is not None:
                self._matches.observe(matched, right)
        if self._values is not None:
            matched = self._values.matched
            right = self._values.update()
            if right is not None:
                self._in_values.observe(matched, right)

    def propose(
        self,
        most: int,
        draft: Draft | None,
        *,
        instead: float = 1.0,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> list[int]:
        """The tokens to check with the next run, at most `most`; none where it is not faster.

        `instead` is what a run without drafted tokens gives per time, in runs of one token: more
        than 1 where it takes tokens of other generations, too. The draft model runs in `turn`s.
        """
        if most < 1 or not self.allowed or not self.state.costs.known or instead == math.inf:
            return []
        found, value = self._plan_lookup(most), self._plan_values(most)
        model = self._plan_draft(most, draft)
        plan = max(found, value, model, key=lambda one: one.gain)
        self._from_model = plan is model
        if plan.gain < _MIN_GAIN * instead:
            return []
        if self._from_model:
            assert draft is not None
            if not model.trial:
                self.state.trials.paid()
            elif not self.state.trials.begin():
                return []
            return draft.propose(self._history, plan.drafts, self.state.costs, turn)
        source = self._values if plan is value else self._lookup
        assert source is not None
        return source.draft(plan.drafts)

    def ran(self, size: int, seconds: float) -> None:
        """Take note of the time of a run of `size` tokens, `settled` not included."""
        self._size, self._seconds = size, seconds

    def settled(self, seconds: float) -> None:
        """Take note of the time that it took to drop what was drafted wrongly."""
        if self._size:
            self.state.costs.several(self._size, self._seconds + seconds)
            self._size = 0

    def compared(self, right: bool) -> None:
        """Take note of whether the next drafted token was chosen."""
        self.accepted += right
        if self._from_model:
            self._drafts.observe(right)
            self.state.drafts.observe(right)

    def _plan_lookup(self, most: int) -> _Plan:
        if self._lookup is None or not self._lookup.matched:
            return _Plan(0, 0.0)
        expected = self._matches.expected(self._lookup.matched, most)
        return self._best(most, expected, 0.0)

    def _plan_values(self, most: int) -> _Plan:
        if self._values is None or not self._values.matched:
            return _Plan(0, 0.0)
        most = min(most, self._values.ready(min(most, SIZES[-1] - 1)))
        expected = self._in_values.expected(self._values.matched, most)
        return self._best(most, expected, 0.0)

    def _plan_draft(self, most: int, draft: Draft | None) -> _Plan:
        if draft is None or self.mode not in ("auto", "draft"):
            return _Plan(0, 0.0)
        most = min(most, draft.room(len(self._history)))
        if most < 1:
            return _Plan(0, 0.0)
        plan = self._best(most, self._drafts.expected(most), self.state.costs.draft_ratio())
        if plan.gain < _MIN_GAIN and self.state.trials.due:
            return _Plan(min(2, most), _MIN_GAIN, trial=True)
        return plan

    def _best(self, most: int, expected: list[float], each: float) -> _Plan:
        """The number of drafted tokens that gives most tokens per time; `each` costs one."""
        plans = [_Plan(0, 1.0)]
        for size in self.state.costs.usable():
            count = size - 1
            if count <= most:
                cost = self.state.costs.ratio(size) + each * count
                plans.append(_Plan(count, expected[count] / cost))
        return max(plans, key=lambda plan: plan.gain)
