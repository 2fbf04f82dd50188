"""Multiple choice by likelihood, as lm-evaluation-harness scores it."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgelm.compress.evaluation.backend import Backend, Progress, no_progress
from edgelm.compress.evaluation.encoding import loglikelihood
from edgelm.compress.evaluation.metrics import Metric, share_of


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its choices and the index of the correct one."""

    question: str
    choices: tuple[str, ...]
    answer: int


def multiple_choice(
    backend: Backend, questions: Sequence[Question], progress: Progress = no_progress
) -> dict[str, Metric]:
    """Accuracy by the choice's likelihood, and normalized by its length in characters."""
    pairs = [(one.question, f" {choice}") for one in questions for choice in one.choices]
    found = iter(loglikelihood(backend, pairs, progress))
    plain, normalized = [], []
    for one in questions:
        likely = [next(found).log_probability for _ in one.choices]
        by_length = [value / len(choice) for value, choice in zip(likely, one.choices, strict=True)]
        plain.append(likely.index(max(likely)) == one.answer)
        normalized.append(by_length.index(max(by_length)) == one.answer)
    return {"accuracy": share_of(plain), "accuracy_norm": share_of(normalized)}
