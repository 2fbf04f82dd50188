"""Decode steps of several generations in one run of the engine.

Every generation runs in its caller's thread. A thread that has a token to run leaves it here; one
of the threads, the leader, takes all tokens that are there, runs them together and gives each
thread its logits. Before it does, it waits a little for the generations of the run before: they are
choosing their next tokens. Without that, the first thread to return would run alone, and so the
others.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple, TypeGuard

import numpy as np

from edgelm.errors import EdgeLMError
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.session import Cancelled, Logits, Session
from edgelm.runtime.turns import Turns, wait_on

_WAIT_SECONDS = 0.05  # between two questions of a waiting thread whether it is cancelled
# Share of a run's time for which the next one waits for tokens. A run of two costs far less than
# twice a run of one, so waiting for half a run does not lose more than it gains.
_PATIENCE = 0.5
_TIMES = 9
_MAX_PATIENCE = 0.05  # seconds; a generation that takes longer to choose a token is not waited for


class StepResult(NamedTuple):
    """Logits [1, vocab_size] behind a token, the seconds of the run, and how many were in it."""

    logits: Logits
    seconds: float
    size: int


def run_together(sessions: Sequence[Session]) -> TypeGuard[Sequence[EngineSession]]:
    """Whether these sessions can take a token each in one run."""
    return len(sessions) > 1 and all(
        isinstance(one, EngineSession) and one.engine.batch is not None for one in sessions
    )


class SharedSteps:
    """Runs the tokens of several sequences together.

    Args:
        turns: of the engine.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        # Held itself: Condition's own `with` is in Python, where Ctrl-C could leave it locked.
        self._mutex = threading.RLock()
        self._changed = threading.Condition(self._mutex)
        self._pending: list[_Token] = []
        self._taken: list[_Token] = []  # by the leader
        self._leader: _Token | None = None
        # The threads of those in the last run that have not returned yet, when it ended, and how
        # long it took.
        self._expected: dict[EngineSession, int] = {}
        self._ended, self._seconds = 0.0, 0.0
        # When each got its last logits, and who then took too long to be waited for.
        self._given: dict[EngineSession, float] = {}
        self._slow: set[EngineSession] = set()
        self._times: dict[int, deque[float]] = {}  # seconds of the last runs, by their size

    def run(self, session: EngineSession, token: int, cancelled: Callable[[], bool]) -> StepResult:
        """Append a token to a sequence, together with those of other threads.

        Args:
            session: the sequence.
            token: what is appended.
            cancelled: called while this thread waits.

        Raises:
            Cancelled: `cancelled` returned true before the token ran.
            ContextFull, BadInput, DoesNotFit, BadBundle: as EngineSession.advance.
        """
        own = _Token(session, token)
        try:
            self._submit(own)
            while not self._finished(own, cancelled):
                self._lead(own, cancelled)
        finally:
            self._withdraw(own)
        if own.interrupted:
            return self._alone(own, cancelled)
        if own.error is not None:
            raise own.error
        assert own.result is not None
        return own.result

    def ended(self, session: Session) -> None:
        """A generation has given its sequence back: nobody waits for its next token."""
        with self._mutex:
            if isinstance(session, EngineSession):
                self._expected.pop(session, None)
                self._given.pop(session, None)
                self._slow.discard(session)
                self._changed.notify_all()

    def gain(self, session: Session) -> float:
        """Tokens per time of a run with those that decode now, over that of a run of one token.

        1 where no other sequence decodes; infinite while it has not been measured.
        """
        with self._mutex:
            others = {*self._expected, *(one.session for one in self._pending)} - self._slow
            size = 1 + sum(one is not session for one in others)
            if size == 1:
                return 1.0
            single, shared = (self._times.get(count) for count in (1, size))
            if not single or not shared:
                return math.inf
            return size * median(single) / median(shared)

    def _submit(self, own: "_Token") -> None:
        with self._mutex:
            self._pending.append(own)
            self._expected.pop(own.session, None)
            now = time.monotonic()
            if now - self._given.get(own.session, now) > self._patience():
                self._slow.add(own.session)
            else:
                self._slow.discard(own.session)
            self._changed.notify_all()

    def _patience(self) -> float:
        return min(_MAX_PATIENCE, _PATIENCE * self._seconds)

    def _finished(self, own: "_Token", cancelled: Callable[[], bool]) -> bool:
        """Wait until the token has run, or its thread is to lead; say which."""
        with self._mutex:
            while not own.done:
                if self._leader is None:
                    self._leader = own
                    return False
                wait_on(self._changed, _WAIT_SECONDS)
                if not own.done and own in self._pending and cancelled():
                    raise Cancelled
            return True

    def _lead(self, own: "_Token", cancelled: Callable[[], bool]) -> None:
        """Run all tokens that are there, the leader's own among them."""
        self._gather()
        try:
            with self._turns.turn(cancelled):
                with self._mutex:
                    self._taken, self._pending = self._pending, []
                self._run(self._taken)
        finally:
            self._lead_no_more(own)

    def _gather(self) -> None:
        """Wait for tokens of the last run's generations, for a part of that run's time."""
        thread = threading.get_ident()
        with self._mutex:
            deadline = self._ended + self._patience()
            while any(
                one not in self._slow and other != thread for one, other in self._expected.items()
            ):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                wait_on(self._changed, left)

    def _run(self, taken: "list[_Token]") -> None:
        started = time.perf_counter()
        if len(taken) > 1:
            try:
                rows = EngineSession.advance_each(
                    [one.session for one in taken], [one.token for one in taken]
                )
            except EdgeLMError:
                # One of them cannot run, or there is no memory: each finds out for itself.
                for one in taken:
                    _advance(one)
            else:
                seconds = time.perf_counter() - started
                for one, row in zip(taken, rows, strict=True):
                    one.result = StepResult(row, seconds, len(taken))
                    one.done = True
        else:
            _advance(taken[0])
        with self._mutex:
            self._seconds = time.perf_counter() - started
            self._times.setdefault(len(taken), deque(maxlen=_TIMES)).append(self._seconds)
            self._ended = time.monotonic()
            self._expected = {one.session: one.thread for one in taken}
            self._given.update(dict.fromkeys(self._expected, self._ended))

    def _withdraw(self, own: "_Token") -> None:
        with self._mutex:
            if own in self._pending:
                self._pending.remove(own)
            self._lead_no_more(own)

    def _lead_no_more(self, own: "_Token") -> None:
        """Another token's thread may lead; what this one took and did not run, runs alone."""
        with self._mutex:
            if self._leader is not own:
                return
            for one in self._taken:
                if not one.done:
                    one.interrupted = one.done = True
            self._taken, self._leader = [], None
            self._changed.notify_all()

    def forget(self, thread: int) -> None:
        """A thread was interrupted between two lines: none of its tokens is to run or to come."""
        with self._mutex:
            self._pending = [one for one in self._pending if one.thread != thread]
            for session in [one for one, its in self._expected.items() if its == thread]:
                del self._expected[session]
            if self._leader is not None and self._leader.thread == thread:
                self._lead_no_more(self._leader)
            self._changed.notify_all()

    def _alone(self, own: "_Token", cancelled: Callable[[], bool]) -> StepResult:
        """Run a token again whose run was interrupted in another thread."""
        with self._turns.turn(cancelled):
            own.session.rewind(min(own.past, own.session.length))
            _advance(own)
        if own.error is not None:
            raise own.error
        assert own.result is not None
        return own.result


class _Token:
    """A token that is to run, and what came of it."""

    def __init__(self, session: EngineSession, token: int) -> None:
        self.session = session
        self.token = token
        self.past = session.length
        self.thread = threading.get_ident()
        self.result: StepResult | None = None
        self.error: EdgeLMError | None = None
        self.done = self.interrupted = False


def _advance(one: _Token) -> None:
    """Run a token alone."""
    started = time.perf_counter()
    try:
        row = one.session.advance(np.array([one.token], dtype=np.int64))
    except EdgeLMError as error:
        one.error = error
    else:
        one.result = StepResult(row, time.perf_counter() - started, 1)
    one.done = True
