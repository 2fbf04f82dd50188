"""A bundle on its engine as a backend of evaluation tasks.

Everything runs through the runtime's own session, tokenizer, chat template and parsers: what is
measured is what ships.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from edgelm.bench.evaluation.bundle.request_starts import Start
from edgelm.bench.evaluation.bundle.requests import (
    LossRequest,
    Request,
    answer_requests,
    continuation_requests,
)
from edgelm.bench.evaluation.bundle.tokenizer import BundleTokenizer, text_rows
from edgelm.bench.evaluation.bundle.workers import BundleWorkers
from edgelm.compress.data.documents import Document
from edgelm.compress.evaluation.backend import (
    MAX_NEW_TOKENS,
    Answer,
    Continuation,
    Conversation,
    Progress,
    no_progress,
)
from edgelm.compress.evaluation.encoding import check_pairs
from edgelm.compress.evaluation.metrics import Metric
from edgelm.runtime.model import LanguageModel

Agreement = Callable[[Sequence[Sequence[int]], Progress], dict[str, Metric]]


class BundleBackend:
    """A loaded bundle; nothing else may use it meanwhile.

    Args:
        model: the bundle.
        agreement: compares it with its source on rows of tokens; None where there is no source.
        workers: processes with the same bundle, that many requests are shared out to.
    """

    def __init__(
        self,
        model: LanguageModel,
        agreement: Agreement | None = None,
        workers: BundleWorkers | None = None,
    ) -> None:
        self.model = model
        self._workers = workers
        self.tokenizer = BundleTokenizer(model)
        self._agreement = agreement

    @property
    def context(self) -> int:
        """Tokens that the cache holds."""
        return self.model.context

    def continuations(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], progress: Progress = no_progress
    ) -> list[Continuation]:
        """See Backend. A context that several requests have is computed once."""
        check_pairs(pairs, self.context)
        return self.run(continuation_requests(pairs, self.context), progress)

    def text_rows(
        self, documents: Iterable[Document], length: int, limit: int | None
    ) -> list[list[int]]:
        """See Backend."""
        return text_rows(self.tokenizer, documents, length, limit)

    def losses(
        self, rows: Sequence[Sequence[int]], progress: Progress = no_progress
    ) -> list[float]:
        """See Backend."""
        return self.run([LossRequest(tuple(row)) for row in rows], progress)

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
        return self.run(answer_requests(self.model, conversations, max_new_tokens), progress)

    def run(self, requests: Sequence[Request], progress: Progress = no_progress) -> list[Any]:
        """Results of requests, in their order; those that begin alike run after one another."""
        if self._workers is not None and self._workers.wants(requests):
            return self._workers.run(requests, progress)
        found: dict[int, Any] = {}
        start = Start(self.model)
        for index in sorted(range(len(requests)), key=lambda index: requests[index].order):
            found[index] = requests[index].run(start)
            progress(len(found), len(requests))
        return [found[index] for index in range(len(requests))]

    def harness_model(self) -> Any:
        """See Backend."""
        from edgelm.bench.evaluation.harness import model_class

        return model_class()(backend=self)
