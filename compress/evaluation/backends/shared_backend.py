"""A backend whose items are divided over all processes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from edgelm.compress.data.documents import Document
from edgelm.compress.evaluation.backend import (
    MAX_NEW_TOKENS,
    Answer,
    Backend,
    Continuation,
    Conversation,
    Progress,
    TextTokenizer,
    no_progress,
)
from edgelm.compress.evaluation.metrics import Metric
from edgelm.compress.run.distributed import gather_from_processes, process_index, world_size

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class SharedBackend:
    """Every process has the same model and makes the same calls, and all get the same results.

    A process computes each n-th item. Batches are composed otherwise than in one process, so that
    results agree up to rounding. Tasks of lm-evaluation-harness are not divided.

    Args:
        own: the backend of this process.
    """

    def __init__(self, own: Backend) -> None:
        self.own = own

    @property
    def tokenizer(self) -> TextTokenizer:
        """See Backend."""
        return self.own.tokenizer

    @property
    def context(self) -> int:
        """See Backend."""
        return self.own.context

    def text_rows(
        self, documents: Iterable[Document], length: int, limit: int | None
    ) -> list[list[int]]:
        """See Backend."""
        return self.own.text_rows(documents, length, limit)

    def continuations(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], progress: Progress = no_progress
    ) -> list[Continuation]:
        """See Backend."""
        return _divided(pairs, progress, self.own.continuations)

    def losses(
        self, rows: Sequence[Sequence[int]], progress: Progress = no_progress
    ) -> list[float]:
        """See Backend."""
        return _divided(rows, progress, self.own.losses)

    def agreement(
        self, rows: Sequence[Sequence[int]], progress: Progress = no_progress
    ) -> dict[str, Metric]:
        """See Backend."""
        found = _of_own_items(rows, progress, self.own.agreement)
        parts = [part for part in gather_from_processes(found) if part is not None]
        return {
            name: Metric(
                _in_order([part[name].sums for part in parts]),
                _in_order([part[name].counts for part in parts]),
                metric.better,
                metric.form,
            )
            for name, metric in (parts[0].items() if parts else ())
        }

    def generate(
        self,
        conversations: Sequence[Conversation],
        max_new_tokens: int = MAX_NEW_TOKENS,
        progress: Progress = no_progress,
    ) -> list[Answer]:
        """See Backend."""

        def answer(own: Sequence[Conversation], shown: Progress) -> list[Answer]:
            return self.own.generate(own, max_new_tokens, shown)

        return _divided(conversations, progress, answer)

    def harness_model(self) -> Any:
        """See Backend."""
        return self.own.harness_model()


def _divided(
    items: Sequence[_Item],
    progress: Progress,
    compute: Callable[[Sequence[_Item], Progress], list[_Result]],
) -> list[_Result]:
    found = _of_own_items(items, progress, compute)
    parts = [part for part in gather_from_processes(found) if part is not None]
    return list(_in_order(parts))


def _of_own_items(items: Sequence[Any], progress: Progress, compute: Callable[..., Any]) -> Any:
    """What `compute` returns for this process's items; None if there are none for it."""
    of = world_size()
    own = items[process_index() :: of]

    def show(done: int, _: int) -> None:
        progress(min(len(items), done * of), len(items))

    return compute(own, show) if own else None


def _in_order(parts: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """Results of the processes' items in the order of all items."""
    count = sum(map(len, parts))
    return tuple(parts[index % len(parts)][index // len(parts)] for index in range(count))
