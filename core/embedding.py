"""What turns a decoder's hidden states into the vector of a text."""

from typing import Annotated, Literal

import msgspec

Pooling = Literal["last", "mean", "first"]


class EmbeddingSettings(msgspec.Struct, frozen=True):
    """How a text becomes a vector, as the authors of the model trained it.

    pooling: which hidden states, behind the final norm, are the vector: the last token's, the mean
        over all tokens, or the first token's.
    normalize: whether the vector is divided by its length.
    prompts: texts by name that are put before a text, such as the instruction for queries.
    default_prompt: the name of the one that is used where the caller names none.
    max_tokens: the longest text, the tokens that the tokenizer adds included.
    """

    pooling: Pooling
    normalize: bool
    prompts: dict[str, str] = {}
    default_prompt: str | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] = 1 << 40
