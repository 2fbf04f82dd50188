"""Texts as the tokens that an embedding model reads."""

from collections.abc import Sequence

import numpy as np

from edgelm.embedding import EmbeddingSettings
from edgelm.errors import BadInput, ContextFull, UnknownName
from edgelm.runtime.engines.session import Tokens
from edgelm.runtime.text.tokenizer import Tokenizer

# A text, or its tokens, which are taken as they are: without prompt, nothing added.
Text = str | Sequence[int] | Tokens


class TextEncoder:
    """Puts the model's prompts before texts, and tokenizes them.

    Args:
        tokenizer: of the model, which adds what it expects around a text.
        settings: of the model.
        max_tokens: of a text, with what is added.
        vocab_size: of the model.
    """

    def __init__(
        self, tokenizer: Tokenizer, settings: EmbeddingSettings, max_tokens: int, vocab_size: int
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.max_tokens = max_tokens
        self.vocab_size = vocab_size

    def prompt_text(self, name: str | None) -> str:
        """The prompt of this name, the model's default one for None, nothing for ''.

        Raises:
            UnknownName: the model has no prompt of this name.
        """
        prompts = self.settings.prompts
        chosen = self.settings.default_prompt if name is None else name
        if not chosen:
            return prompts.get("", "")
        if not isinstance(chosen, str) or chosen not in prompts:
            known = ", ".join(prompts) or "none"
            raise UnknownName(f"this model has no prompt {chosen!r}; its prompts: {known}")
        return prompts[chosen]

    def encode(self, text: Text, prompt: str, *, truncate: bool) -> Tokens:
        """Tokens of a text behind a prompt; `truncate` cuts the end of one that is too long.

        Raises:
            BadInput: an empty text, or tokens that are not the model's.
            ContextFull: a text that is too long.
        """
        if not isinstance(text, str):
            tokens, added = self._checked(text), (0, 0)
        elif not text:
            raise BadInput("a text is empty; expected at least one character")
        else:
            tokens = self.tokenizer.encode(prompt + text)
            added = self._added(tokens, prompt + text) if len(tokens) > self.max_tokens else (0, 0)
        if len(tokens) <= self.max_tokens:
            return tokens
        if not truncate:
            raise ContextFull(
                f"a text has {len(tokens):,} tokens, this model takes at most "
                f"{self.max_tokens:,}; split it, or pass truncate=True to cut off its end"
            )
        return self._cut(tokens, *added)

    def _checked(self, tokens: Sequence[int] | Tokens) -> Tokens:
        array = np.asarray(tokens)
        if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
            raise BadInput("expected a text, or a list of at least one token id")
        if array.min() < 0 or array.max() >= self.vocab_size:
            raise BadInput(
                f"token ids are from {array.min()} to {array.max()}, this model has 0 to "
                f"{self.vocab_size - 1}; were they made by another tokenizer?"
            )
        return array.astype(np.int64)

    def _added(self, tokens: Tokens, text: str) -> tuple[int, int]:
        """How many tokens the tokenizer adds before and behind a text."""
        plain = self.tokenizer.encode(text, special=False)
        extra = len(tokens) - len(plain)
        for before in range(extra + 1):
            if np.array_equal(tokens[before : before + len(plain)], plain):
                return before, extra - before
        return 0, 0

    def _cut(self, tokens: Tokens, before: int, behind: int) -> Tokens:
        """The first tokens of a text, and all that were added around it."""
        kept = max(1, self.max_tokens - behind)
        return np.concatenate([tokens[:kept], tokens[len(tokens) - behind :]])[: self.max_tokens]
