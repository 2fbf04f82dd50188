"""From a history to the logits behind it: prefill, single runs, and runs that check drafts.

A run that checks drafted tokens gives a row of logits for each. The rows are handed out one by one,
for as long as the sampler chooses the tokens that were drafted; nothing else of a generation knows
of speculation.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.session import Cancelled, Logits, Session
from edgelm.runtime.generation.request import GenerationRequest
from edgelm.runtime.generation.slot import Slot
from edgelm.runtime.sequences import Sequences
from edgelm.runtime.speculation.costs import SIZES
from edgelm.runtime.speculation.exactness import exact_size
from edgelm.runtime.speculation.speculator import Speculator


class _Checked(NamedTuple):
    """What a run with drafted tokens gave: a row behind each token from `start` on."""

    rows: Logits
    tokens: list[int]
    start: int


class Steps:
    """The runs of one generation.

    Args:
        sequences: of the model.
        request: what is generated.
        history: tokens so far; the list that the generation appends to.
        speculator: drafts tokens; None: every run is of one token.
        stop: whether the generation is cancelled.
        placed: called with how many tokens were cached, each time that it gets a sequence.
    """

    def __init__(
        self,
        sequences: Sequences,
        request: GenerationRequest,
        history: Sequence[int],
        *,
        speculator: Speculator | None,
        stop: Callable[[], bool],
        placed: Callable[[int], None],
    ) -> None:
        self._sequences = sequences
        self._request = request
        self._history = history
        self._speculator = speculator
        self._stop = stop
        self._placed = placed
        self._stores = False
        self._checked: _Checked | None = None
        self._noted = len(history)

    def row(self, slot: Slot, moved: bool) -> Logits:
        """The logits [vocab_size] behind the history.

        Args:
            slot: the generation's sequence.
            moved: whether it may hold something else than after the last step.
        """
        session, history = slot.session, self._history
        self._note_tokens()
        if moved:
            self._checked = None
        elif self._checked is not None:
            row = self._next_checked(session)
            if row is not None:
                return row
        if moved or session.length != len(history) - 1:
            self._place(slot)
        elif (drafts := self._drafts(slot)) is not None:
            return self._check(session, drafts)
        return self._run(slot)

    def _note_tokens(self) -> None:
        if self._speculator is not None:
            while self._noted < len(self._history):
                self._noted += 1
                self._speculator.update()

    def _next_checked(self, session: Session) -> Logits | None:
        """The row behind the last token, if that is the one that was drafted."""
        assert self._checked is not None
        assert self._speculator is not None
        rows, tokens, start = self._checked
        number = len(self._history) - 1 - start
        right = number < len(tokens) and tokens[number] == self._history[-1]
        if number < len(tokens):
            self._speculator.compared(right)
        if right:
            row: Logits = rows[number]
            return row
        self._checked = None
        with self._sequences.turn(self._stop):
            started = time.perf_counter()
            session.keep(len(self._history) - 1)
            self._speculator.settled(time.perf_counter() - started)
        return None

    def _drafts(self, slot: Slot) -> list[int] | None:
        """Tokens to check with the next run, or None."""
        if self._speculator is None:
            return None
        # Drafted tokens run without the tokens of other generations: they have to gain more.
        shared = self._sequences.shared_steps
        instead = 1.0 if shared is None else shared.gain(slot.session)
        most = min(self._room(slot.session), slot.session.chunk - 1, SIZES[-1] - 1)
        most = exact_size(slot.session, most + 1) - 1
        if most < 1:
            return None
        drafts = self._speculator.propose(most, slot.draft, instead=instead, turn=self._draft_turn)
        return drafts or None

    @contextmanager
    def _draft_turn(self) -> Iterator[None]:
        """A turn of the draft model, unless the generation is cancelled."""
        with self._sequences.turn(self._stop):
            if self._stop():  # a turn that need not wait does not look
                raise Cancelled
            yield

    def _room(self, session: Session) -> int:
        """Drafted tokens that the context and the request leave room for."""
        length, limit = len(self._history), self._request.max_tokens
        room = session.capacity - length
        if limit is not None:
            room = min(room, limit - (length - len(self._request.tokens)) - 1)
        return room

    def _check(self, session: Session, drafts: list[int]) -> Logits:
        """Run the last token with drafted ones behind it."""
        assert self._speculator is not None
        state = self._speculator.state
        tokens = [self._history[-1], *drafts]
        start, size = session.length, len(tokens)
        with self._sequences.turn(self._stop):
            compares = not state.exactness.known(size)
            alone = self._alone(session, tokens[:2]) if compares else None
            started = time.perf_counter()
            rows = session.verify(np.array(tokens, dtype=np.int64))
            seconds = time.perf_counter() - started
            if alone is None:
                self._speculator.ran(size, seconds)
            elif not state.exactness.compare(size, alone, rows[:2]) and not (
                self._speculator.allowed
            ):
                session.keep(start)
                row: Logits = session.advance(np.array(tokens[:1], dtype=np.int64))[-1]
                return row
        self._speculator.drafted += len(drafts)
        self._checked = _Checked(rows, tokens, start)
        first: Logits = rows[0]
        return first

    def _alone(self, session: Session, tokens: list[int]) -> Logits:
        """Logits of tokens run one by one; the session is as before."""
        start = session.length
        rows = [session.verify(np.array([token], dtype=np.int64))[-1].copy() for token in tokens]
        session.keep(start)
        return np.array(rows)

    def _run(self, slot: Slot) -> Logits:
        """Run what the session does not hold of the history, in chunks."""
        history, session = self._history, slot.session
        while True:
            done = session.length
            rows = self._advance(session, history[done : done + session.chunk])
            if session.length == len(history):
                row: Logits = rows[-1]
                return self._stored(slot, row)
            if self._stop():
                raise Cancelled

    def _place(self, slot: Slot) -> None:
        """Begin with what is known of the history."""
        history, beginning = self._history, self._request.beginning
        with self._sequences.turn(self._stop):
            known = self._sequences.place(slot, history, self._request.adapter)
        if known < beginning:
            self._stores = not self._sequences.read_beginning(slot, history[:beginning])
        self._placed(slot.session.length)

    def _stored(self, slot: Slot, row: Logits) -> Logits:
        """Store the beginning of the prompt, if this has computed it; return the logits."""
        if self._stores:
            self._stores = False
            row = row.copy()
            self._sequences.write_beginning(slot, self._history[: self._request.beginning])
        return row

    def _advance(self, session: Session, tokens: Sequence[int]) -> Logits:
        """Run one chunk of a prompt, or one token; other generations have turns in between.

        A token runs together with those of other generations where the graph takes several.
        """
        shared = self._sequences.shared_steps
        if len(tokens) == 1 and shared is not None and isinstance(session, EngineSession):
            step = shared.run(session, tokens[0], self._stop)
            if self._speculator is not None and step.size == 1:
                self._speculator.state.costs.single(step.seconds)
            return step.logits
        with self._sequences.turn(self._stop):
            session.cancel_when(self._stop)
            started = time.perf_counter()
            try:
                return session.advance(np.array(tokens, dtype=np.int64))
            finally:
                session.cancel_when(None)
                if self._speculator is not None and len(tokens) == 1:
                    self._speculator.state.costs.single(time.perf_counter() - started)
