"""Texts to token ids, for log-likelihoods."""

from collections.abc import Sequence

from edgelm.compress.data.text_ends import TextEnds
from edgelm.compress.evaluation.backend import (
    Backend,
    Continuation,
    Progress,
    TextTokenizer,
    no_progress,
)


def encode_pair(
    tokenizer: TextTokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Token ids of a context and of what follows it, encoded as one text and then divided.

    Encoded apart, a tokenizer that begins every text with a space would put a second one between.
    As in lm-evaluation-harness, white space at the end of the context belongs to the continuation;
    a token across the border counts as context, and so do tokens that every text begins with.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    inner = _ids(tokenizer, stripped)
    whole = _ids(tokenizer, stripped + continuation)
    before = TextEnds.of(tokenizer).before
    return [*before, *whole[: len(inner)]], whole[len(inner) :]


def loglikelihood(
    backend: Backend, pairs: Sequence[tuple[str, str]], progress: Progress = no_progress
) -> list[Continuation]:
    """Log-likelihood of each (context, continuation) pair of texts."""
    encoded = [encode_pair(backend.tokenizer, *pair) for pair in pairs]
    return backend.continuations(encoded, progress)


def _ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
