"""Multiple choice by likelihood, as lm-evaluation-harness scores it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgelm.compress.evaluation.tasks.likelihood import continuations, encode_pair
from edgelm.compress.evaluation.tasks.scores import Score, share
from edgelm.compress.model import Model, Tokenizer


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its choices and the index of the correct one."""

    question: str
    choices: tuple[str, ...]
    answer: int


def multiple_choice(
    model: Model,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Score]:
    """Accuracy by the choice's likelihood, and normalized by its length in characters."""
    pairs = [
        encode_pair(tokenizer, one.question, f" {choice}")
        for one in questions
        for choice in one.choices
    ]
    found = iter(continuations(model, pairs, progress))
    plain, normalized = [], []
    for one in questions:
        likely = [next(found).log_probability for _ in one.choices]
        by_length = [value / len(choice) for value, choice in zip(likely, one.choices, strict=True)]
        plain.append(likely.index(max(likely)) == one.answer)
        normalized.append(by_length.index(max(by_length)) == one.answer)
    return {"accuracy": share(plain), "accuracy_norm": share(normalized)}
