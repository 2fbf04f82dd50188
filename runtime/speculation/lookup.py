"""Prompt lookup: what followed the last tokens where they occurred before.

Answers that summarize, edit or extract repeat parts of their prompt. An index from the last few
tokens to where they occurred before finds such a part (arXiv 2304.04487 and the prompt lookup
decoding of transformers); a pointer then follows it for as long as it predicts the next token. The
predictions are compared with the tokens that come, whether they were drafted or not: how often they
are right costs no run of the engine to learn.
"""

from collections.abc import Sequence

_ORDERS = (6, 3, 2)  # tokens of context, longest first
_LONGEST = 32  # a longer match predicts no better


class PromptLookup:
    """The index over one history, and the pointer into it.

    The history only grows; `update` is called after each growth and takes constant time per token.
    """

    def __init__(self, history: Sequence[int]) -> None:
        self._history = history
        self._next: dict[int, dict[tuple[int, ...], int]] = {order: {} for order in _ORDERS}
        self._pointer = 0  # position of the predicted token; 0: no prediction
        self._matched = 0  # tokens before it that equal the end of the history
        self._length = 0
        self._index(len(history))
        self._find()

    @property
    def matched(self) -> int:
        """How many tokens at the end of the history the prediction rests on; 0 for none."""
        return self._matched if self._pointer else 0

    def predicted(self) -> int | None:
        """The next token, if one is predicted."""
        return self._history[self._pointer] if self._pointer else None

    def draft(self, count: int) -> list[int]:
        """The `count` tokens that followed last time; at the end of the history, from there again.

        So a text that repeats itself is expected to do so again.
        """
        if not self._pointer:
            return []
        tokens = list(self._history[self._pointer : self._pointer + count])
        period = len(tokens)
        while len(tokens) < count:
            tokens.append(tokens[-period])
        return tokens

    def update(self) -> bool | None:
        """Take note of one more token in the history; return whether it was predicted.

        None where nothing was predicted.
        """
        token = self._history[self._length]
        predicted = self.predicted()
        self._index(self._length + 1)
        if predicted == token:
            self._pointer += 1
            self._matched = min(self._matched + 1, _LONGEST)
            return True
        self._find()
        return None if predicted is None else False

    def _index(self, length: int) -> None:
        """Enter the contexts of all tokens up to `length`; the end itself is not known yet."""
        history, first = self._history, self._length
        for order, following in self._next.items():
            start = max(first, order)
            if start >= length:
                continue
            columns = [history[start - order + n : length - order + n] for n in range(order)]
            following.update(zip(zip(*columns, strict=True), range(start, length), strict=True))
        self._length = length

    def _find(self) -> None:
        """Point behind the latest earlier occurrence of the history's end, of the longest context.

        `length` was just indexed as the continuation of the tokens before it, so the end of the
        history has no entry of its own yet.
        """
        history, length = self._history, self._length
        for order, following in self._next.items():
            if length < order:
                continue
            found = following.get(tuple(history[length - order : length]))
            if found is not None:
                self._pointer = found
                self._matched = self._common(found, order)
                return
        self._pointer = self._matched = 0

    def _common(self, position: int, known: int) -> int:
        """How many tokens before `position` equal those at the end of the history."""
        history, length = self._history, self._length
        count = known
        most = min(_LONGEST, position)
        while count < most and history[position - 1 - count] == history[length - 1 - count]:
            count += 1
        return count
