"""Accuracy on the last word of a passage (LAMBADA, Paperno et al. 2016, arXiv 1606.06031)."""

import math
from collections.abc import Callable, Sequence

from edgelm.compress.evaluation.tasks.likelihood import continuations, encode_pair
from edgelm.compress.evaluation.tasks.scores import Score, share
from edgelm.compress.model import Model, Tokenizer


def last_word(
    model: Model,
    tokenizer: Tokenizer,
    passages: Sequence[tuple[str, str]],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Score]:
    """Accuracy of greedy decoding, and perplexity, of the last words of (context, word) passages.

    All tokens of the word, with the space before it, must be the most likely ones.
    """
    pairs = [encode_pair(tokenizer, context, f" {word}") for context, word in passages]
    found = continuations(model, pairs, progress)
    loss = -sum(one.log_probability for one in found) / len(found)
    return {
        "accuracy": share([one.greedy for one in found]),
        "perplexity": Score(math.exp(loss), None, len(found), "lower"),
    }
