"""The draft head of a model: its next tokens, from the model's hidden states.

At each position the head takes the next token and the hidden state behind the tokens before it, a
pair. What it gives is its guess of the token after the next one, and a hidden state that stands for
the model's when it guesses one further. Its key-value cache begins at the first pair of which it
has a hidden state: the model keeps those of its last tokens only, and has none of tokens whose
state was copied or read from a file.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np

from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.host.hidden_rows import HiddenRows
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine
from edgelm.runtime.engines.session import Logits
from edgelm.runtime.speculation.costs import StepCosts
from edgelm.runtime.speculation.drafts.draft_model import common_length

_FEW = 16  # pairs whose reading counts as a run of one token


class _Guess(NamedTuple):
    """What the head gives behind its last pair: logits [vocab_size], hidden [1, hidden_size]."""

    logits: Logits
    hidden: Logits


class HeadDraft:
    """A draft head's sequence, for one of the model's.

    Args:
        session: of the draft head, closed with this; its engine is run by one thread at a time.
        hidden: the hidden states of the model's sequence.
        vocab_size: of the model.
    """

    def __init__(self, session: EngineSession, hidden: HiddenRows, vocab_size: int) -> None:
        assert isinstance(session.engine, OrtEngine), "draft heads run on ONNX Runtime's CPU"
        self.session = session
        self.vocab_size = vocab_size
        self._engine = session.engine
        self._hidden = hidden
        self._start = 0  # the position of the first pair
        self._tokens: list[int] = []  # of the pairs in its cache, in their order

    def room(self, length: int) -> int:
        """How many tokens it can draft behind `length`."""
        return max(0, self._engine.capacity - length + 1)

    def propose(
        self,
        history: Sequence[int],
        count: int,
        costs: StepCosts,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> list[int]:
        """Continue `history` by `count` tokens; by none where its hidden states are not known.

        Args:
            history: tokens so far; the model has run all but the last one.
            count: of tokens to draft.
            costs: where the times of its runs are noted.
            turn: the engine's; many pairs are read in chunks with a turn each.
        """
        count = min(count, self.room(len(history)))
        until = len(history) - 1
        if count < 1 or not self._hidden.start < until <= self._hidden.end:
            return []
        at = self._keep(history, until)
        while True:
            with turn():
                end = min(until, at + self._engine.chunk)
                guess = self._read(history, at, end, costs)
                at = end
                if at == until:
                    return self._greedy(guess, count, costs)

    def close(self) -> None:
        """Release its engine and its cache."""
        self.session.close()

    def _keep(self, history: Sequence[int], until: int) -> int:
        """Forget pairs that are no longer those of the history; return the first one to read."""
        hidden, start = self._hidden, self._start
        same = common_length(self._tokens, history[start + 1 :])
        # At least one is read: what the head gives is not kept.
        kept = min(same, max(0, hidden.unchanged - start), until - start - 1)
        if kept <= 0 or start + kept < hidden.start:
            self._start, kept = hidden.start, 0
        del self._tokens[kept:]
        return self._start + kept

    def _read(self, history: Sequence[int], at: int, end: int, costs: StepCosts) -> _Guess:
        """Read the pairs `at` to `end`."""
        tokens = list(history[at + 1 : end + 1])
        guess = self._run(tokens, self._hidden.rows(at, end), costs if end - at <= _FEW else None)
        self._tokens += tokens
        self._hidden.read_until(end)
        return guess

    def _greedy(self, guess: _Guess, count: int, costs: StepCosts) -> list[int]:
        """The continuation; pairs of drafted tokens are overwritten by the next that are read."""
        tokens = [self._best(guess)]
        while len(tokens) < count:
            guess = self._run(tokens[-1:], guess.hidden, costs, behind=len(tokens) - 1)
            tokens.append(self._best(guess))
        return tokens

    def _run(
        self, tokens: list[int], hidden: Logits, costs: StepCosts | None, *, behind: int = 0
    ) -> _Guess:
        """Run pairs behind those in the cache, and behind as many more of drafted tokens."""
        started = time.perf_counter()
        past = len(self._tokens) + behind
        logits, states = self._engine.run_head(np.array(tokens, dtype=np.int64), past, hidden)
        if costs is not None:
            costs.drafted(time.perf_counter() - started)
        return _Guess(logits[-1], states)

    def _best(self, guess: _Guess) -> int:
        return int(guess.logits[: self.vocab_size].argmax())
