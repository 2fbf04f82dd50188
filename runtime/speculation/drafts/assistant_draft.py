"""The assistant of a Gemma 4: tokens from the hidden state and the cache of its model.

It keeps nothing from one draft to the next, so that rewinding, shared beginnings and rejected
tokens mean nothing to it. Directly behind a state that was restored, the hidden state in front of
the last token is not known: it drafts nothing before the model has run a token.

It reads the cache of the tokens before the last one. Transformers' generator does so only after the
prompt: after a rejected token it leaves that token's row in the cache as well.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.host.assistant_engine import AssistantEngine
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine
from edgelm.runtime.speculation.costs import StepCosts
from edgelm.spec.assistant import STATES


class AssistantDraft:
    """An assistant, for one sequence of its model.

    Args:
        session: of the assistant, closed with this.
        model: the engine of the model's sequence, which gives hidden states.
        vocab_size: of the model.
    """

    def __init__(self, session: EngineSession, model: OrtEngine, vocab_size: int) -> None:
        assert isinstance(session.engine, AssistantEngine), "see drafts_for"
        assert model.hidden is not None, "manifests of assistants are for models that give them"
        self.session = session
        self.vocab_size = vocab_size
        self._engine, self._model, self._hidden = session.engine, model, model.hidden
        self._hidden.keep_last(STATES)

    def room(self, length: int) -> int:
        """How many tokens it can draft behind `length`: any number while one fits."""
        return max(0, self._engine.capacity - length + 1)

    def propose(
        self,
        history: Sequence[int],
        count: int,
        costs: StepCosts,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> list[int]:
        """Continue `history` by `count` tokens; by none where its hidden state is not known.

        Args:
            history: tokens so far; the model has run all but the last one.
            count: of tokens to draft.
            costs: where the times of its runs are noted.
            turn: the engine's.
        """
        count = min(count, self.room(len(history)))
        past = len(history) - 1
        if count < 1 or not self._hidden.start < past <= self._hidden.end:
            return []
        with turn():
            started = time.perf_counter()
            rows = self._model.read_rows(self._model.capacity)
            runs = self._engine.runs(past, self._model.loaded[1], rows)
            tokens = [int(history[-1])]
            hidden = self._hidden.rows(past - 1, past)
            for number in range(count):
                row = runs.run(tokens[-1], None if number else hidden)
                tokens.append(int(row[: self.vocab_size].argmax()))
                now = time.perf_counter()
                costs.drafted(now - started)
                started = now
        return tokens[1:]

    def close(self) -> None:
        """Release its engine."""
        self.session.close()
