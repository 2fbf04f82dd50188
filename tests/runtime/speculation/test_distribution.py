"""Sampling with drafted tokens keeps the distribution: a chi-square test on six tokens."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from types import TracebackType

import numpy as np
import pytest

from edgelm.python310 import Self
from edgelm.runtime.engines.session import CacheRows, Logits, Session, Tokens
from edgelm.runtime.generation.request import GenerationRequest
from edgelm.runtime.generation.sampling.settings import Sampling
from edgelm.runtime.generation.sampling.transforms import softmax
from edgelm.runtime.generation.stream import Stream
from edgelm.runtime.sequences import Sequences
from edgelm.runtime.speculation.costs import SIZES, StepCosts

VOCAB = 6
# Logits behind each token: a Markov chain whose likeliest path is a loop, which lookup drafts.
ROWS = np.random.default_rng(2).normal(0, 1, (VOCAB, VOCAB)).astype(np.float32)
ROWS[np.arange(VOCAB), (np.arange(VOCAB) + 1) % VOCAB] += 2


class MarkovSession:
    """A session whose logits depend on the last token alone."""

    capacity = 1 << 14
    vocab_size = VOCAB
    chunk = 64
    cache_bytes = 0
    adapter = None

    def __init__(self) -> None:
        self.length = 0
        self.tokens: list[int] = []
        self.checked = 0

    def advance(self, tokens: Tokens, *, logits: int = 1) -> Logits:
        self.tokens += tokens.tolist()
        self.length = len(self.tokens)
        rows: Logits = ROWS[tokens[-logits:]].copy()
        return rows

    def verify(self, tokens: Tokens) -> Logits:
        self.checked += len(tokens) > 1
        return self.advance(tokens, logits=len(tokens))

    def keep(self, length: int) -> None:
        self.rewind(length)

    def rewind(self, length: int) -> None:
        del self.tokens[length:]
        self.length = length

    def cancel_when(self, cancelled: object) -> None: ...

    def use_adapter(self, adapter: object) -> None: ...

    def sibling(self) -> Session:
        return MarkovSession()

    def state(self, length: int) -> CacheRows:
        return []

    def restore(self, tokens: object, state: CacheRows) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Letters:
    """A vocabulary whose tokens are letters."""

    eos_token_ids: frozenset[int] = frozenset()

    @property
    def tokenizer(self) -> "Letters":
        return self

    def decode(self, tokens: list[int], *, special: bool = False) -> str:
        return "".join(chr(97 + token) for token in tokens)


class Free(StepCosts):
    """Drafted tokens cost next to nothing, whatever the clock says."""

    @property
    def known(self) -> bool:
        return True

    def usable(self) -> list[int]:
        return list(SIZES)

    def ratio(self, size: int) -> float:
        return 1.01


@pytest.fixture
def sequences() -> Iterator[Sequences]:
    sequences = Sequences([MarkovSession()])
    sequences.speculation.costs = Free()
    yield sequences
    sequences.close()


SETTINGS = {
    "plain": Sampling(temperature=1.0, seed=1),
    "hot": Sampling(temperature=1.7, seed=2),
    "top-k": Sampling(temperature=1.0, top_k=3, seed=3),
}


@pytest.mark.parametrize("sampling", SETTINGS.values(), ids=SETTINGS)
def test_transitions_have_the_models_probabilities(
    sequences: Sequences, sampling: Sampling
) -> None:
    request = GenerationRequest(
        np.array([0, 1, 2, 3, 4, 5, 0, 1], np.int64), 3000, sampling, speculation="lookup"
    )
    reply = Stream(sequences, Letters(), request).read()  # type: ignore[arg-type]
    session = sequences.slots[0].session
    assert isinstance(session, MarkovSession)
    assert session.checked > 20
    assert reply.timings.accepted > 20
    tokens = [1, *reply.tokens]
    counts = Counter(pairwise(tokens))
    statistic, freedom = 0.0, 0
    for before in range(VOCAB):
        row = ROWS[before].astype(np.float64) / sampling.temperature
        if sampling.top_k:
            row[np.argsort(row)[: VOCAB - sampling.top_k]] = -np.inf
        shares = softmax(row.astype(np.float32))
        seen = np.array([counts[before, after] for after in range(VOCAB)])
        assert not seen[shares == 0].any()
        expected = shares * seen.sum()
        possible = shares > 0
        statistic += float(((seen - expected)[possible] ** 2 / expected[possible]).sum())
        freedom += int(possible.sum()) - 1
    # The statistic's mean is `freedom`, its variance twice that: 4 sigma and more is no chance.
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)
