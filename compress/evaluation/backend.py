"""What evaluation tasks need of a model, whatever runs it.

Tasks ask for the log-likelihood of continuations and for answers; a backend is a Hugging Face
model (`backends`) or a bundle on its engine (edgelm.bench.evaluation). Nothing here imports
torch, so that a bundle can be evaluated on a device without it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgelm.compress.data.documents import Document
from edgelm.compress.evaluation.metrics import Metric

Progress = Callable[[int, int], None]
"""Called with the number of items done, and of all."""
MAX_NEW_TOKENS = 1280  # of an answer, as in lm-evaluation-harness


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """Log-probability of a continuation in nats, its tokens, whether greedy decoding yields it."""

    log_probability: float
    tokens: int
    greedy: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages to answer, in OpenAI's form, and the functions that the model may call."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of_user(cls, text: str) -> "Conversation":
        """One message of the user."""
        return cls(({"role": "user", "content": text},))


@dataclass(frozen=True, slots=True)
class Call:
    """A function that the model called."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer; `ended` is false where a limit of tokens cut it."""

    text: str
    tokens: int
    ended: bool
    calls: tuple[Call, ...] = ()


class TextTokenizer(Protocol):
    """What is needed of a tokenizer, as transformers spells it."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a document."""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, list[int]]:
        """`input_ids` of a text; with special tokens, also those that every text begins with."""


class Backend(Protocol):
    """A model that can be evaluated."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer."""

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its answer."""

    def continuations(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], progress: Progress = no_progress
    ) -> list[Continuation]:
        """Log-likelihood of each continuation after its context, both token ids.

        Contexts are truncated on the left to the model's longest sequence.

        Raises:
            BadInput: an empty context or continuation, or one that leaves no room for a context.
        """

    def text_rows(
        self, documents: Iterable[Document], length: int, limit: int | None
    ) -> list[list[int]]:
        """Documents between their ends, joined and cut into at most `limit` rows of `length`.

        Raises:
            BadInput: too little text for one row.
        """

    def losses(
        self, rows: Sequence[Sequence[int]], progress: Progress = no_progress
    ) -> list[float]:
        """Mean next-token loss of each row of token ids, in nats."""

    def agreement(
        self, rows: Sequence[Sequence[int]], progress: Progress = no_progress
    ) -> dict[str, Metric]:
        """`kl` from a reference model and `top1` agreement with it; nothing without one."""

    def generate(
        self,
        conversations: Sequence[Conversation],
        max_new_tokens: int = MAX_NEW_TOKENS,
        progress: Progress = no_progress,
    ) -> list[Answer]:
        """Greedy answers through the chat template, in the order of the conversations.

        Raises:
            BadInput: no chat template, or a prompt that fills the context.
        """

    def harness_model(self) -> Any:
        """The model as lm-evaluation-harness takes it.

        Raises:
            MissingPackage: lm_eval is not installed.
        """
