"""A backend whose answers and likelihoods are given by functions of what it is asked."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from edgelm.compress.data.documents import Document
from edgelm.compress.evaluation.backend import (
    Answer,
    Continuation,
    Conversation,
    Progress,
    no_progress,
)
from edgelm.compress.evaluation.metrics import Metric


class Characters:
    """A tokenizer of characters."""

    eos_token_id = None

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, list[int]]:
        return {"input_ids": list(map(ord, text))}


class Scripted:
    """Answers with `answer`; a continuation is as likely as `likelihood` says."""

    def __init__(
        self,
        answer: Callable[[Conversation], Answer] = lambda _: Answer("", 0, True),
        likelihood: Callable[[str, str], float] = lambda context, text: -len(text),
        context: int = 1000,
    ) -> None:
        self.tokenizer = Characters()
        self.context = context
        self.answer = answer
        self.likelihood = likelihood
        self.asked: list[Conversation] = []

    def continuations(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], progress: Progress = no_progress
    ) -> list[Continuation]:
        found = []
        for before, after in pairs:
            score = self.likelihood("".join(map(chr, before)), "".join(map(chr, after)))
            found.append(Continuation(score, len(after), score == 0))
        return found

    def text_rows(
        self, documents: Iterable[Document], length: int, limit: int | None
    ) -> list[list[int]]:
        raise NotImplementedError

    def losses(
        self, rows: Sequence[Sequence[int]], progress: Progress = no_progress
    ) -> list[float]:
        raise NotImplementedError

    def agreement(
        self, rows: Sequence[Sequence[int]], progress: Progress = no_progress
    ) -> dict[str, Metric]:
        return {}

    def generate(
        self,
        conversations: Sequence[Conversation],
        max_new_tokens: int = 1280,
        progress: Progress = no_progress,
    ) -> list[Answer]:
        self.asked += conversations
        answers = []
        for one in conversations:
            answers.append(self.answer(one))
            progress(len(answers), len(conversations))
        return answers

    def harness_model(self) -> Any:
        raise NotImplementedError
