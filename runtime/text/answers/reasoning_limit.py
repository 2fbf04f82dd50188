"""What may be generated around a model's reasoning: its length, and a constraint behind it.

A constraint on the answer begins where the reasoning ends. Reasoning that reaches its budget is
ended for the model: the tokens of the end tag are forced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgelm.runtime.generation.sampling.logits_processor import Constraint, Row
from edgelm.runtime.text.tokenizer import Detokenizer, Tokenizer


@dataclass(frozen=True, slots=True)
class ReasoningRules:
    """What is known of one model's reasoning.

    `begin` and `end` are the tokens of its tags, `end_text` the end tag as it is shown. Used only
    with a constraint: `optional`, the model may begin to reason or not; `always`, it does;
    `direct`, tokens that are forced where an answer begins without reasoning; `after`, those where
    it follows it.
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]
    end_text: str
    eos: frozenset[int]
    optional: bool = True
    always: bool = False
    direct: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


class ReasoningLimit:
    """The constraint of an answer that may begin with reasoning.

    Args:
        rules: of the model.
        detokenizer: shows the control tokens of the tags.
        thinking: whether the prompt has begun the reasoning.
        budget: tokens of reasoning; None for no limit.
        then: makes the constraint of what follows; None for none.
    """

    def __init__(
        self,
        rules: ReasoningRules,
        detokenizer: Detokenizer,
        *,
        thinking: bool,
        budget: int | None,
        then: Callable[[], Constraint] | None,
    ) -> None:
        self._rules = rules
        self._detokenizer = detokenizer
        self._budget = budget
        self._then = then
        self._inner: Constraint | None = None
        self._forced: list[int] = []
        self._thinking, self._begun = thinking, thinking
        self._seen: list[int] = []
        self._tail, self._thoughts = "", 0
        if not thinking and then is not None:
            if rules.always and budget != 0:
                self._thinking, self._begun, self._forced = True, True, list(rules.begin)
            else:
                self._begin_answer(rules.direct)
        self._check_budget()

    @property
    def complete(self) -> bool:
        """Whether what follows the reasoning is complete."""
        return not self._forced and self._inner is not None and self._inner.complete

    def forced(self) -> str:
        """The text that has to follow, of the answer."""
        if self._forced or self._thinking or self._inner is None or self._may_begin():
            return ""
        return self._inner.forced()

    def __call__(self, history: Sequence[int], logits: Row) -> Row:
        """Logits [vocab_size] with minus infinity for what may not come next."""
        if self._forced:
            return _only(logits, [self._forced[0]])
        if self._thinking:
            # An answer that must have a form cannot end before it has begun.
            return logits if self._then is None else _without(logits, self._rules.eos)
        if self._inner is None:
            return logits
        row = self._inner(history, logits)
        if self._may_begin():
            row[self._rules.begin[0]] = logits[self._rules.begin[0]]
        return row

    def advance(self, token: int) -> None:
        """Add the token that was chosen."""
        if self._thinking:
            self._think(token)
        elif self._forced:
            self._forced.pop(0)
        elif self._begins(token):
            self._inner, self._thinking, self._begun = None, True, True
            self._forced = list(self._rules.begin[len(self._seen) + 1 :])
            self._check_budget()
        elif self._inner is not None:
            self._inner.advance(token)
        self._seen.append(token)

    def _may_begin(self) -> bool:
        """Whether the model may still begin its reasoning here."""
        if self._begun or self._seen or self._then is None:
            return False
        return self._rules.optional and self._budget != 0

    def _begins(self, token: int) -> bool:
        begin = self._rules.begin
        if self._begun or not begin:
            return False
        if self._then is not None:
            return self._may_begin() and token == begin[0]
        return [*self._seen, token] == list(begin)

    def _think(self, token: int) -> None:
        if self._forced:
            self._forced.pop(0)
        else:
            self._thoughts += 1
        self._tail = (self._tail + self._detokenizer.push(token))[-4 * len(self._rules.end_text) :]
        if self._rules.end_text in self._tail:
            self._thinking, self._forced = False, []
            if self._then is not None:
                self._begin_answer(self._rules.after)
        elif not self._forced:
            self._check_budget()

    def _check_budget(self) -> None:
        spent = self._budget is not None and self._thoughts >= self._budget
        if self._thinking and not self._forced and spent:
            self._forced = list(self._rules.end)

    def _begin_answer(self, forced: Sequence[int]) -> None:
        assert self._then is not None
        self._forced = list(forced)
        self._inner = self._then()


def control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Texts of the special tokens: they are no text to a decoder, nor to a grammar."""
    return {
        token.content: number
        for number, token in tokenizer.added_tokens().items()
        if token.special and token.content
    }


def _only(logits: Row, tokens: Sequence[int]) -> Row:
    row = np.full_like(logits, -np.inf)
    row[tokens] = logits[tokens]
    return row


def _without(logits: Row, tokens: Sequence[int] | frozenset[int]) -> Row:
    row = logits.copy()
    row[[token for token in tokens if token < len(row)]] = -np.inf
    return row
