"""What a sequence holds before a request runs on it: the tokens that the request shares, no others.

A result depends on its request alone, never on what ran before it. A cache of 8 bits makes that
less obvious than it sounds: tokens of one run see each other's keys and values unrounded, and those
of earlier runs rounded. So what requests share is stated in them and always run by itself.
"""

import threading
from collections import OrderedDict

import numpy as np

from edgelm.runtime.engines.session import CacheRows, Session
from edgelm.runtime.model import LanguageModel


class SharedStates:
    """States after tokens that several requests begin with, computed once for all threads.

    Args:
        count: of states that stay in memory, the last that were used.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._states: OrderedDict[tuple[int, ...], CacheRows] = OrderedDict()
        self._lock = threading.Lock()

    def fill(self, session: Session, tokens: tuple[int, ...]) -> None:
        """Make an empty session hold these tokens."""
        with self._lock:
            state = self._states.pop(tokens, None)
            if state is None:
                session.advance(np.array(tokens, dtype=np.int64))
                state = [array.copy() for array in session.state(len(tokens))]
            else:
                session.restore(tokens, state)
            self._states[tokens] = state
            while len(self._states) > self._count:
                self._states.popitem(last=False)


class Start:
    """What a model's session holds before a request; nothing else may use the session meanwhile.

    Args:
        model: the bundle, or a part of it with one sequence.
        states: those that other threads have computed, too; None where there are none.
    """

    def __init__(self, model: LanguageModel, states: SharedStates | None = None) -> None:
        self.model = model
        self._states = states
        self._held: tuple[int, ...] = ()

    def begin(self, shared: tuple[int, ...]) -> Session:
        """Make the session hold these tokens, computed by themselves, and no others."""
        session = self.model.session
        if shared != self._held:
            session.rewind(0)
            self._held = ()
            if shared:
                self._fill(session, shared)
            self._held = shared
        session.rewind(len(shared))
        return session

    def _fill(self, session: Session, shared: tuple[int, ...]) -> None:
        if self._states is None:
            session.advance(np.array(shared, dtype=np.int64))
        else:
            self._states.fill(session, shared)
