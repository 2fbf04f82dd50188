"""A small model that drafts tokens for a large one with the same vocabulary."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np

from edgelm.runtime.engines.session import Logits, Session
from edgelm.runtime.speculation.costs import StepCosts


class Draft(Protocol):
    """What drafts tokens for one sequence: a draft model, or a draft head (HeadDraft)."""

    @property
    def session(self) -> Session:
        """Its own, on its engine."""

    def room(self, length: int) -> int:
        """How many tokens it can draft behind `length`."""

    def propose(
        self,
        history: Sequence[int],
        count: int,
        costs: StepCosts,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> list[int]:
        """Continue `history` by at most `count` tokens."""

    def close(self) -> None:
        """Release its engine and its cache."""


class DraftModel:
    """A draft model's sequence, for one of the model's.

    It is brought up to date when tokens are requested, and then continues greedily.

    Args:
        session: of the draft model; used by one thread at a time.
        vocab_size: of the model that it drafts for: its own logits may be padded to more.
    """

    def __init__(self, session: Session, vocab_size: int) -> None:
        self.session = session
        self.vocab_size = vocab_size

    def room(self, length: int) -> int:
        """How many tokens it can draft behind `length`: its context may be the shorter one."""
        return max(0, self.session.capacity - length + 1)

    def propose(
        self,
        history: Sequence[int],
        count: int,
        costs: StepCosts,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> list[int]:
        """Continue `history` by `count` tokens; fewer where its context is full.

        Args:
            history: tokens so far.
            count: of tokens to draft.
            costs: where the times of its runs are noted.
            turn: the engine's; a long text is read in chunks with a turn each, so that other
                generations run in between, and a cancelled one ends.
        """
        session = self.session
        count = min(count, self.room(len(history)))
        if count < 1:
            return []
        done = min(common_length(session.tokens, history), len(history) - 1)
        while True:
            with turn():
                if session.length != done:
                    session.rewind(done)
                part = history[done : done + session.chunk]
                row = session.advance(np.array(part, dtype=np.int64))
                done = session.length
                if done == len(history):
                    return self._greedy(row, count, costs)

    def _greedy(self, row: Logits, count: int, costs: StepCosts) -> list[int]:
        """The continuation behind the last row."""
        tokens = [self._best(row)]
        while len(tokens) < count:
            started = time.perf_counter()
            row = self.session.advance(np.array(tokens[-1:], dtype=np.int64))
            costs.drafted(time.perf_counter() - started)
            tokens.append(self._best(row))
        return tokens

    def _best(self, rows: Logits) -> int:
        return int(rows[-1, : self.vocab_size].argmax())

    def close(self) -> None:
        """Release its engine and its cache."""
        self.session.close()


def common_length(held: Sequence[int], history: Sequence[int]) -> int:
    """How many tokens both begin with."""
    shared = min(len(held), len(history))
    left, right = np.asarray(held[:shared]), np.asarray(history[:shared])
    different = np.flatnonzero(left != right)
    return int(different[0]) if len(different) else shared
