"""Text to tokens and back, one token at a time."""

from pathlib import Path

import numpy as np
import tokenizers

from edgelm.errors import BadBundle
from edgelm.runtime.session import Tokens

_REPLACEMENT = "\ufffd"  # what a decoder puts for bytes that are no whole character yet


class Tokenizer:
    """A bundle's tokenizer."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BadBundle(f"{path} is no tokenizer: {error}; export the model again") from None

    def encode(self, text: str, *, special: bool = True) -> Tokens:
        """Token ids of a text; `special` adds what the model expects around it (e.g. BOS)."""
        return np.array(
            self._tokenizer.encode(text, add_special_tokens=special).ids, dtype=np.int64
        )

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids, without special tokens."""
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def token(self, identifier: int) -> str | None:
        """The piece of the vocabulary with this id."""
        return self._tokenizer.id_to_token(identifier)


class Detokenizer:
    """Streams text: what is returned never ends in half a character.

    Decoding is not additive (a piece's text can depend on its left neighbour), so a short tail of
    tokens is decoded twice, with and without the newest, and the difference is what is new.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._context = 0  # tokens before this index only give context
        self._done = 0  # tokens before this index have been returned

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now complete, often but not always a piece."""
        self._tokens.append(token)
        text = self._new_text()
        if text.endswith(_REPLACEMENT):
            return ""
        if text:  # a special token alone gives no context: the next piece would lose its space
            self._context = self._done
        self._done = len(self._tokens)
        return text

    def flush(self) -> str:
        """What is left at the end: the text of tokens that never became whole characters."""
        text = self._new_text()
        self._context = self._done = len(self._tokens)
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._tokens[self._context : self._done])
        after = self._tokenizer.decode(self._tokens[self._context :])
        return after[len(before) :]
