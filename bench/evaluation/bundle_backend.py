"""A bundle on its engine as a backend of evaluation tasks.

Everything runs through the runtime's own session, tokenizer, chat template and parsers: what is
measured is what ships.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelm.bench.evaluation.bundle_tokenizer import BundleTokenizer, text_rows
from edgelm.compress.data.documents import Document
from edgelm.compress.evaluation.backend import (
    MAX_NEW_TOKENS,
    Answer,
    Call,
    Continuation,
    Conversation,
    Progress,
    no_progress,
)
from edgelm.compress.evaluation.encoding import check_pairs
from edgelm.compress.evaluation.metrics import Metric
from edgelm.runtime.generation.options import GREEDY, Options
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.sequences import common_prefix

_ROWS = 128  # rows of logits that exist at a time
Agreement = Callable[[Sequence[Sequence[int]], Progress], dict[str, Metric]]


class BundleBackend:
    """A loaded bundle; nothing else may use it meanwhile.

    Args:
        model: the bundle.
        agreement: compares it with its source on rows of tokens; None where there is no source.
    """

    def __init__(self, model: LanguageModel, agreement: Agreement | None = None) -> None:
        self.model = model
        self.tokenizer = BundleTokenizer(model)
        self._agreement = agreement

    @property
    def context(self) -> int:
        """Tokens that the cache holds."""
        return self.model.context

    def continuations(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], progress: Progress = no_progress
    ) -> list[Continuation]:
        """See Backend. Requests that begin alike run after one another, over one cache."""
        check_pairs(pairs, self.context)
        rows = [[*before, *after][-self.context :] for before, after in pairs]
        found: dict[int, Continuation] = {}
        for index in sorted(range(len(rows)), key=rows.__getitem__):
            found[index] = self.continuation(rows[index], len(pairs[index][1]))
            progress(len(found), len(rows))
        return [found[index] for index in range(len(rows))]

    def text_rows(
        self, documents: Iterable[Document], length: int, limit: int | None
    ) -> list[list[int]]:
        """See Backend."""
        return text_rows(self.tokenizer, documents, length, limit)

    def losses(
        self, rows: Sequence[Sequence[int]], progress: Progress = no_progress
    ) -> list[float]:
        """See Backend."""
        found = []
        for row in rows:
            found.append(self._loss(row))
            progress(len(found), len(rows))
        return found

    def agreement(
        self, rows: Sequence[Sequence[int]], progress: Progress = no_progress
    ) -> dict[str, Metric]:
        """See Backend."""
        return {} if self._agreement is None else self._agreement(rows, progress)

    def generate(
        self,
        conversations: Sequence[Conversation],
        max_new_tokens: int = MAX_NEW_TOKENS,
        progress: Progress = no_progress,
    ) -> list[Answer]:
        """See Backend."""
        answers = []
        for conversation in conversations:
            answers.append(self._answer(conversation, max_new_tokens))
            progress(len(answers), len(conversations))
        return answers

    def harness_model(self) -> Any:
        """See Backend."""
        from edgelm.bench.evaluation.harness import model_class

        return model_class()(backend=self)

    def continuation(self, row: list[int], count: int) -> Continuation:
        """The likelihood of the last `count` tokens of a row after those before them."""
        session = self.model.session
        # The logits of the context's last token are needed, and only a run gives them.
        start = min(common_prefix(session.tokens, row), len(row) - count - 1)
        session.rewind(start)
        logits = session.advance(np.array(row[start:-1], dtype=np.int64), logits=count)
        targets = np.array(row[-count:])
        greedy = bool((logits.argmax(-1) == targets).all())
        return Continuation(float(_logprobs(logits, targets).sum()), count, greedy)

    def _answer(self, conversation: Conversation, max_new_tokens: int) -> Answer:
        options = Options(**GREEDY, max_tokens=max_new_tokens)
        if conversation.tools:
            options["tools"] = conversation.tools
        reply = self.model.generate([dict(one) for one in conversation.messages], **options)  # type: ignore[arg-type]
        calls = tuple(Call(one.name, one.parsed()) for one in reply.tool_calls)
        return Answer(reply.text, len(reply.tokens), reply.finish_reason != "length", calls)

    def _loss(self, row: Sequence[int]) -> float:
        session, tokens = self.model.session, np.array(row, dtype=np.int64)
        session.rewind(0)
        total = 0.0
        for at in range(0, len(tokens) - 1, _ROWS):
            part, targets = tokens[at : at + _ROWS], tokens[at + 1 : at + 1 + _ROWS]
            logits = session.advance(part[: len(targets)], logits=len(targets))
            total -= float(_logprobs(logits, targets).sum())
        return total / (len(tokens) - 1)


def _logprobs(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Log-probabilities [rows] of the targets."""
    shifted = logits - logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(shifted, targets[:, None], 1)[:, 0]
    found: npt.NDArray[np.float64] = chosen.astype(np.float64) - np.log(
        np.exp(shifted).sum(-1, dtype=np.float64)
    )
    return found
