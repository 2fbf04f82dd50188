"""Retrieval from a long context: a sentence at some depth, asked for at the end.

After "needle in a haystack" (Kamradt 2023), by likelihood: the code that the sentence gives must
be what greedy decoding writes. It goes through the model's cache, as long contexts do in use.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from edgelm.compress.evaluation.backend import Backend, Progress, no_progress
from edgelm.compress.evaluation.encoding import loglikelihood
from edgelm.compress.evaluation.metrics import Metric, perplexity_of, share_of
from edgelm.errors import BadInput

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SHORTEST, _LONGEST = 256, 131_072
_ROOM = 96  # tokens for the question, the code and what the tokenizer adds
_SEED = 5
_WHO = ("mill", "harbor", "tower", "garden", "library", "bakery", "station", "bridge")
_WHAT = (
    "opens before noon",
    "was painted last spring",
    "stands near the old square",
    "has a new roof",
    "is quiet in winter",
    "belongs to two brothers",
    "was drawn by a traveller",
    "has a bell that rings on holidays",
)


class Needle(NamedTuple):
    """A haystack of about `tokens` tokens with a code at a depth."""

    tokens: int
    depth: float
    context: str
    code: str


def needle(
    backend: Backend,
    limit: int | None,
    progress: Progress = no_progress,
    length: int | None = None,
) -> dict[str, Metric]:
    """Accuracy and perplexity of the code, over all lengths and depths and by length.

    `length` is the longest text with its question; by default the model's context.

    Raises:
        BadInput: the context is too short for any.
    """
    context = backend.context if length is None else length
    needles = make_needles(backend, context)[:limit]
    if not needles:
        raise BadInput(
            f"the context has {context} tokens, needle needs at least "
            f"{_SHORTEST + _ROOM}; export with a longer --context, or leave out the task"
        )
    found = loglikelihood(backend, [(one.context, f" {one.code}") for one in needles], progress)
    right = [one.greedy for one in found]
    figures = {
        "accuracy": share_of(right),
        "code_perplexity": perplexity_of([-one.log_probability / one.tokens for one in found]),
    }
    for tokens in dict.fromkeys(one.tokens for one in needles):
        chosen = [hit for hit, one in zip(right, needles, strict=True) if one.tokens == tokens]
        figures[f"accuracy at {tokens}"] = share_of(chosen)
    return figures


def make_needles(backend: Backend, context: int) -> list[Needle]:
    """One for each depth and each length: powers of two up to the context."""
    longest = min(context - _ROOM, _LONGEST)
    lengths, tokens = list[int](), _SHORTEST
    while tokens <= longest:
        lengths.append(tokens)
        tokens *= 2
    if lengths and longest > lengths[-1] * 1.25:
        lengths.append(longest)
    sentences = _haystack(backend, lengths[-1]) if lengths else []
    return [
        _needle(sentences, tokens, depth, number)
        for tokens in lengths
        for number, depth in enumerate(DEPTHS)
    ]


def _haystack(backend: Backend, tokens: int) -> list[tuple[str, int]]:
    """Sentences and how many tokens each adds, enough for a length."""
    rng, found, total = random.Random(_SEED), list[tuple[str, int]](), 0
    while total < tokens:
        text = f"The {rng.choice(_WHO)} of {rng.choice(_WHO)} street {rng.choice(_WHAT)}."
        count = len(backend.tokenizer(f" {text}", add_special_tokens=False)["input_ids"])
        found.append((text, count))
        total += count
    return found


def _needle(sentences: Sequence[tuple[str, int]], tokens: int, depth: float, number: int) -> Needle:
    chosen, total = list[str](), 0
    for text, count in sentences:
        if total + count > tokens:
            break
        chosen.append(text)
        total += count
    code = str(random.Random(f"{tokens} {number}").randrange(1000, 10_000))
    at = round(depth * len(chosen))
    hidden = f"The secret code of the lighthouse is {code}."
    context = " ".join([*chosen[:at], hidden, *chosen[at:], "The secret code of the lighthouse is"])
    return Needle(tokens, depth, context, code)
