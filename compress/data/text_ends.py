"""The tokens that a text begins and ends with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Tokenizer = Any  # of transformers, which ships no types


@dataclass(frozen=True, slots=True)
class TextEnds:
    """Tokens before a text (BOS of Llama 3 and Gemma, none of GPT-2 or Qwen), and after it (EOS).

    A model whose tokenizer adds a beginning-of-sequence token has never seen a text without one.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "TextEnds":
        """As the tokenizer itself begins a text."""
        end = tokenizer.eos_token_id
        return cls(_added_before(tokenizer), () if end is None else (end,))

    def around(self, ids: Sequence[int], *, starts: bool = False) -> list[int]:
        """The tokens of a document between its ends; nothing for an empty one.

        Args:
            ids: the document's own tokens.
            starts: whether they include the tokens that a text begins with, as the output of a
                chat template does.
        """
        if not ids:
            return []
        return [*(() if starts else self.before), *ids, *self.after]


def _added_before(tokenizer: Tokenizer) -> tuple[int, ...]:
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()  # special tokens change the text itself; no known tokenizer does that
