"""Drafts of JSON answers, from their text: what `Extraction` predicts, as tokens."""

from collections.abc import Callable, Sequence
from itertools import takewhile

from edgelm.errors import BadInput
from edgelm.runtime.speculation.extraction import Extraction
from edgelm.runtime.text.tokenizer import Detokenizer, Tokenizer

_CHARACTERS = 80  # that are predicted at a time
_CONTEXT = 4  # tokens before a prediction, which decide how it is split
_LONGEST = 32
_GUESSED, _MODELED = 3, 6  # what a new prediction counts as, in tokens of a match


class ValueLookup:
    """Predicted tokens, followed for as long as they are right.

    Args:
        history: tokens so far, those of the prompt; the list that the generation appends to.
        tokenizer: of the model.
        vocab_size: of the logits; what the tokenizer has beyond them has no embedding.
        forced: gives the text that has to follow the history, where a grammar leaves no choice.
    """

    def __init__(
        self,
        history: Sequence[int],
        tokenizer: Tokenizer,
        vocab_size: int,
        forced: Callable[[], str] = lambda: "",
    ) -> None:
        self._history, self._tokenizer, self._forced = history, tokenizer, forced
        self._vocab_size = vocab_size
        self._prompt = self._length = len(history)
        self._text = Detokenizer(tokenizer)
        self._extraction: Extraction | None = None
        self._tokens: list[int] = []
        self._matched = 0
        self._whole = True  # whether the text so far ends with a whole character

    @property
    def matched(self) -> int:
        """How sure the prediction is, as tokens of a match; 0 for none."""
        return self._matched if self._tokens else 0

    def update(self) -> bool | None:
        """Take note of one more token in the history; return whether it was predicted.

        None where nothing was predicted.
        """
        token = self._history[self._length]
        self._length += 1
        right = None
        if self._tokens:
            right = self._tokens.pop(0) == token
        self._read(token)
        if right:
            self._matched = min(self._matched + 1, _LONGEST)
        else:
            self._tokens = []
        if not self._tokens:
            self._predict(new=not right)
        return right

    def ready(self, count: int) -> int:
        """How many tokens are predicted; of `count`, as many as can be."""
        if 0 < len(self._tokens) < count:
            self._predict(new=False)
        return len(self._tokens)

    def draft(self, count: int) -> list[int]:
        """The next `count` predicted tokens."""
        return self._tokens[:count]

    def _read(self, token: int) -> None:
        text = self._text.push(token)
        self._whole = bool(text)
        if self._extraction is None:
            if "{" not in text and "[" not in text:
                return
            prompt = self._tokenizer.decode(list(self._history[: self._prompt]))
            self._extraction = Extraction(prompt)
        self._extraction.push(text)

    def _predict(self, *, new: bool) -> None:
        """Predict what follows the history; `new`: what was predicted before was wrong."""
        if not self._whole:
            return
        text = self._forced()
        modeled = bool(text)
        if self._extraction is not None:
            text, known = self._extraction.predict(_CHARACTERS, text)
            modeled = modeled or known
        if not text:
            return
        before = self._history[max(0, self._length - _CONTEXT) : self._length]
        try:
            encoded = self._tokenizer.encode_behind(self._tokenizer.decode(list(before)), text)
        except BadInput:  # text that the tokenizer has no tokens for
            return
        tokens = list(takewhile(lambda token: token < self._vocab_size, encoded))
        if len(tokens) > len(self._tokens):
            self._tokens = tokens
        if new:
            self._matched = _MODELED if modeled else _GUESSED
