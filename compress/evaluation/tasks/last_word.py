"""Accuracy on the last word of a passage (LAMBADA, Paperno et al. 2016, arXiv 1606.06031)."""

from collections.abc import Sequence

from edgelm.compress.evaluation.backend import Backend, Progress, no_progress
from edgelm.compress.evaluation.encoding import loglikelihood
from edgelm.compress.evaluation.metrics import Metric, perplexity_of, share_of


def last_word(
    backend: Backend, passages: Sequence[tuple[str, str]], progress: Progress = no_progress
) -> dict[str, Metric]:
    """Accuracy of greedy decoding, and perplexity, of the last words of (context, word) passages.

    All tokens of the word, with the space before it, must be the most likely ones.
    """
    pairs = [(context, f" {word}") for context, word in passages]
    found = loglikelihood(backend, pairs, progress)
    return {
        "accuracy": share_of([one.greedy for one in found]),
        "perplexity": perplexity_of([-one.log_probability for one in found]),
    }
