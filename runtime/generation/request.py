"""What to generate, checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgelm.errors import BadInput, ContextFull
from edgelm.runtime.engines.adapters import LoadedAdapter
from edgelm.runtime.engines.session import Tokens
from edgelm.runtime.generation.sampling.logits_processor import Constraint, LogitsProcessor
from edgelm.runtime.generation.sampling.settings import Sampling
from edgelm.runtime.text.answers.parser import AnswerParser
from edgelm.speculation import SpeculationMode


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate.

    `logprobs` None gives none; n gives each token's own and those of the n best. `cancel` is called
    before every step, while the request waits, and during a long prefill. `constraint` makes the
    processor that says which text may be generated; it is the last of them, so that none can allow
    what it forbids. The first `beginning` tokens are those that other prompts begin with, too.
    `speculation` says where drafted tokens come from. With an `adapter`, all tokens run with it.
    """

    tokens: Tokens
    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    logprobs: int | None = None
    processors: tuple[LogitsProcessor, ...] = ()
    constraint: Callable[[], Constraint] | None = None
    parser: Callable[[], AnswerParser] | None = None
    shown: Mapping[int, str] | None = None
    cancel: Callable[[], bool] = lambda: False
    beginning: int = 0
    speculation: SpeculationMode = "off"
    adapter: LoadedAdapter | None = None

    def check(self, *, capacity: int, vocab_size: int) -> None:
        """Raise BadInput or ContextFull for a request that cannot start.

        Args:
            capacity: tokens that the cache holds.
            vocab_size: logits per token.
        """
        count = len(self.tokens)
        if count == 0:
            raise BadInput("the prompt is empty; expected at least one token")
        if count > capacity:
            raise ContextFull(
                f"the prompt has {count} tokens, the context holds {capacity}; "
                "shorten it, or export with a larger --context"
            )
        for token in (int(self.tokens.min()), int(self.tokens.max())):
            if not 0 <= token < vocab_size:
                raise BadInput(
                    f"the prompt holds token {token}, the vocabulary has "
                    f"{vocab_size}; was it made by another tokenizer?"
                )
        for token in self.stop_tokens:
            if not 0 <= token < vocab_size:
                raise BadInput(
                    f"stop_tokens names token {token}, the vocabulary has {vocab_size}; the model "
                    "never generates it"
                )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise BadInput(f"max_tokens is {self.max_tokens}, expected at least 1")
        if (self.logprobs or 0) < 0:
            raise BadInput(f"logprobs is {self.logprobs}, expected at least 0")
        self.sampling.check(vocab_size)
