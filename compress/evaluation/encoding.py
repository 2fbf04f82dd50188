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
from edgelm.errors import BadInput


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


def check_pairs(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], longest: int) -> None:
    """Raise BadInput for a pair without context or continuation, or without room for a context."""
    for number, (context, continuation) in enumerate(pairs, 1):
        if not context or not 0 < len(continuation) < longest:
            raise BadInput(
                f"pair {number} has {len(context)} tokens of context and {len(continuation)} after "
                f"it; expected at least one of each, and after it fewer than {longest}"
            )


def _ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
