"""The sequences of a model: which generation has which, and which requests wait.

Each sequence is a session with a state of its own over the same weights. A generation keeps its
sequence until it ends. More requests than sequences wait in the order in which they came.

A generation that nobody continues does not hold others up: its sequence is given away when its own
thread asks for another one, or after a while when others wait. When it is continued it gets a
sequence again, and its tokens are computed again: nothing is lost but time.
"""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from itertools import zip_longest

from edgelm.errors import BadInput, Busy, EdgeLMError
from edgelm.runtime.engines.adapters import LoadedAdapter
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.session import CacheRows, Cancelled, Session
from edgelm.runtime.forks import keep_forever, watch_forks
from edgelm.runtime.generation.slot import Slot
from edgelm.runtime.saved.prompt_cache import MIN_TOKENS, PromptCache
from edgelm.runtime.shared_steps import SharedSteps, run_together
from edgelm.runtime.speculation.drafts.drafts_for import drafts_for
from edgelm.runtime.speculation.speculator import SpeculationState
from edgelm.runtime.turns import Turns, wait_on

_WAIT_SECONDS = 0.05
# Fewer equal tokens than this are not worth copying from another sequence.
_WORTH_COPYING = 16


class Sequences:
    """The slots of a model.

    Args:
        sessions: one or more over the same weights; they are closed with this.
        prompt_cache: where states of beginnings are stored; None: nowhere.
        drafts: a draft's session for each, or none; they are closed with this, too.
        batching: whether tokens of several sequences run together, where the graph can.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        prompt_cache: PromptCache | None = None,
        drafts: Sequence[Session] = (),
        *,
        batching: bool = True,
    ) -> None:
        self.prompt_cache, self.batching = prompt_cache, batching
        self.slots = [Slot(*pair) for pair in zip_longest(sessions, drafts_for(sessions, drafts))]
        self.speculation = SpeculationState()
        # Runs with an adapter cost more, and their rows may not be exact where others are.
        self._adapted_speculation: dict[LoadedAdapter, SpeculationState] = {}
        self.closed = self._forked = False
        self._turns = Turns()
        # Where one run takes tokens of several sequences; None: each step is of one.
        self.shared_steps = (
            SharedSteps(self._turns) if batching and run_together(sessions) else None
        )
        # Held itself: Condition's own `with` is in Python, where Ctrl-C could leave it locked.
        self._mutex = threading.RLock()
        self._changed = threading.Condition(self._mutex)
        self._waiting: deque[object] = deque()
        watch_forks(self)

    @property
    def capacity(self) -> int:
        """Tokens that each sequence holds."""
        return self.slots[0].session.capacity

    @property
    def vocab_size(self) -> int:
        """Logits per token."""
        return self.slots[0].session.vocab_size

    @property
    def running(self) -> int:
        """Generations that have a sequence."""
        return sum(not slot.is_free() for slot in self.slots)

    @property
    def waiting(self) -> int:
        """Requests that wait for a sequence."""
        return len(self._waiting)

    def split(self) -> "list[Sequences]":
        """Each sequence by itself: it takes nothing from the others, but shares the engine."""
        parts = []
        for slot in self.slots:
            part = copy(self)
            part.slots = [slot]
            part._mutex, part._waiting = threading.RLock(), deque()
            part._changed = threading.Condition(part._mutex)
            watch_forks(part)
            parts.append(part)
        return parts

    def speculation_of(self, adapter: LoadedAdapter | None) -> SpeculationState:
        """What generations with an adapter share, or those without one."""
        if adapter is None:
            return self.speculation
        return self._adapted_speculation.setdefault(adapter, SpeculationState())

    def turn(self, cancelled: Callable[[], bool] | None = None) -> AbstractContextManager[None]:
        """The engine, for one run: see Turns."""
        return self._turns.turn(cancelled)

    def enter(
        self,
        owner: object,
        tokens: Sequence[int],
        cancelled: Callable[[], bool],
        adapter: LoadedAdapter | None = None,
    ) -> tuple[Slot, bool]:
        """The sequence of a generation, for one step; it waits until there is one.

        Args:
            owner: the generation.
            tokens: what it will hold; the sequence that holds most of them already is preferred.
            cancelled: called while it waits.
            adapter: that they run with: see `place`.

        Returns:
            The sequence, and whether it may hold something else than after the last step.

        Raises:
            Busy: this thread is within a step already.
            Cancelled: `cancelled` returned true.
            BadInput: the model is closed.
        """
        thread = threading.get_ident()
        with self._mutex:
            self.check_open()
            if any(slot.running and slot.thread == thread for slot in self.slots):
                raise Busy(
                    "this model is generating; it cannot be used from within its own `cancel` or "
                    "logits processor"
                )
            own = self._slot_of(owner)
            if own is not None:
                own.running, own.thread = True, thread
                return own, False
            self._waiting.append(owner)
            try:
                while (slot := self._next_free(owner, tokens, adapter)) is None:
                    wait_on(self._changed, _WAIT_SECONDS)
                    self.check_open()
                    if cancelled():
                        raise Cancelled
            finally:
                self._waiting.remove(owner)
                self._changed.notify_all()
            slot.owner = weakref.ref(owner, self._dropped)
            slot.running, slot.thread = True, thread
            return slot, True

    def interrupted(self, owner: object, error: BaseException) -> None:
        """A step of this thread has failed; an error of a signal may come between any two lines.

        To be called outside the step: the thread neither holds the engine nor waits any more, and
        its generation has no sequence.
        """
        if isinstance(error, EdgeLMError):  # no signal's; Busy even comes within another step
            return
        self._turns.forget(thread := threading.get_ident())
        if self.shared_steps is not None:
            self.shared_steps.forget(thread)
        with self._mutex:
            while owner in self._waiting:
                self._waiting.remove(owner)
            for slot in self.slots:
                if owner is not None and slot.owner is not None and slot.owner() is owner:
                    slot.running, slot.owner = False, None
                    slot.session.cancel_when(None)
                for session in (slot.session, slot.draft and slot.draft.session):
                    if isinstance(session, EngineSession):
                        session.running.interrupted()
            self._changed.notify_all()

    def leave(self, slot: Slot, *, done: bool) -> None:
        """The end of a step; `done` gives the sequence back."""
        with self._mutex:
            slot.running, slot.used = False, time.monotonic()
            if done:
                slot.owner = None
                self._changed.notify_all()
        if done:
            self._ended([slot])

    def release(self, owner: object) -> None:
        """Give back the sequence of a generation that ends between two steps."""
        with self._mutex:
            slot = self._slot_of(owner)
            if slot is not None and not slot.running:
                slot.owner = None
                self._changed.notify_all()
        if slot is not None:
            self._ended([slot])

    def place(self, slot: Slot, tokens: Sequence[int], adapter: LoadedAdapter | None = None) -> int:
        """Make a sequence hold as much of `tokens` as is known, all but the last at most.

        What another sequence holds of them is copied, if it ran with the same adapter. To be called
        within a turn.

        Returns:
            How many of them it holds.
        """
        # At least one token must run: logits are not stored.
        most = len(tokens) - 1
        slot.session.use_adapter(adapter)
        shared = min(common_prefix(slot.session.tokens, tokens), most)
        others = [other.session for other in self._slots_of(adapter) if other is not slot]
        known = [(min(common_prefix(one.tokens, tokens), most), one) for one in others]
        longest, source = max(known, key=lambda pair: pair[0], default=(0, slot.session))
        if longest >= shared + _WORTH_COPYING:
            slot.session.restore(tokens[:longest], source.state(longest))
            return slot.session.length
        slot.session.rewind(shared)
        return slot.session.length

    def snapshot(
        self, tokens: Sequence[int], adapter: LoadedAdapter | None = None
    ) -> tuple[list[int], CacheRows]:
        """What the sequences hold of these tokens, as a copy: the tokens and their state."""
        try:
            with self.turn():
                self.check_open()
                slots = self._slots_of(adapter)
                known = [(common_prefix(one.session.tokens, tokens), one) for one in slots]
                length, slot = max(known, key=lambda pair: pair[0], default=(0, self.slots[0]))
                state = [array.copy() for array in slot.session.state(length)]
                return list(tokens[:length]), state
        except BaseException as error:
            self.interrupted(None, error)
            raise

    def preload(
        self, tokens: Sequence[int], state: CacheRows, adapter: LoadedAdapter | None = None
    ) -> None:
        """Make a sequence hold tokens whose state was computed before; it waits for one.

        Raises:
            BadInput: a state of another model.
            ContextFull: more tokens than a sequence holds.
        """
        owner = _Owner()
        try:
            slot, _ = self.enter(owner, tokens, lambda: False, adapter)
            try:
                with self.turn():
                    check_state(slot.session, state)
                    slot.session.use_adapter(adapter)
                    slot.session.restore(tokens, state)
            finally:
                self.leave(slot, done=True)
        except BaseException as error:
            self.interrupted(owner, error)
            raise

    def read_beginning(self, slot: Slot, tokens: Sequence[int]) -> bool:
        """Make a sequence hold a beginning that is stored on disk, if one is; say whether it is."""
        cache = self.prompt_cache
        state = (
            None
            if cache is None or len(tokens) < MIN_TOKENS
            else cache.read(tokens, slot.session.adapter)
        )
        if state is None:
            return False
        with self.turn():
            check_state(slot.session, state)
            slot.session.restore(tokens, state)
        return True

    def write_beginning(self, slot: Slot, tokens: Sequence[int]) -> None:
        """Store the state after a beginning that a sequence holds, unless it is stored."""
        cache = self.prompt_cache
        if cache is None or len(tokens) < MIN_TOKENS or cache.has(tokens, slot.session.adapter):
            return
        with self.turn():
            state = [array.copy() for array in slot.session.state(len(tokens))]
        cache.write(tokens, state, slot.session.adapter)

    def check_open(self) -> None:
        """Raise BadInput after `close`, and in a process that was forked from the model's."""
        if self.closed:
            where = "; load it again"
            if self._forked:
                where = " in this process, which was forked after it was loaded; load it here"
            raise BadInput(f"this model is closed{where}")

    def after_fork(self) -> None:
        """Close it in the child of a fork, which has none of the engine's threads.

        The engine is not released: it would wait for them.
        """
        self.closed = self._forked = True
        self._mutex, self._turns = threading.RLock(), Turns()
        self._changed = threading.Condition(self._mutex)
        self.shared_steps = None  # its lock, too, may be held by a thread that is not here
        for slot in self.slots:
            keep_forever(slot.session)
            if slot.draft is not None:
                keep_forever(slot.draft.session)

    def close(self) -> None:
        """Close all sessions; a generation of another thread ends at its next step: BadInput."""
        if self._forked:
            return
        self.closed = True
        with self._mutex:
            self._changed.notify_all()
        if self._turns.held_here():  # in `cancel`: the session closes itself after its run
            self._close_sessions()
            return
        try:
            with self._turns.turn():
                self._close_sessions()
        except BaseException as error:
            self.interrupted(None, error)
            raise

    def _close_sessions(self) -> None:
        for slot in self.slots:
            slot.session.close()
            if slot.draft is not None:
                slot.draft.close()

    def _dropped(self, _: object) -> None:
        """A generation was dropped: its sequence is free."""
        with self._mutex:
            self._changed.notify_all()
        self._ended([slot for slot in self.slots if slot.is_free()])

    def _ended(self, slots: "list[Slot]") -> None:
        """Do not wait for the next tokens of generations that gave these back."""
        if self.shared_steps is not None:  # without the lock: its own may be held by a run
            for slot in slots:
                self.shared_steps.ended(slot.session)

    def _slot_of(self, owner: object) -> Slot | None:
        owned = (slot for slot in self.slots if slot.owner is not None)
        return next((slot for slot in owned if slot.owner and slot.owner() is owner), None)

    def _slots_of(self, adapter: LoadedAdapter | None) -> list[Slot]:
        """Those whose tokens ran with an adapter, or without one."""
        return [slot for slot in self.slots if slot.session.adapter is adapter]

    def _next_free(
        self, owner: object, tokens: Sequence[int], adapter: LoadedAdapter | None
    ) -> Slot | None:
        """A free sequence for these tokens: the one that they continue, or the oldest."""
        if self._waiting[0] is not owner:
            return None
        free = [slot for slot in self.slots if slot.is_free()]
        if not free:
            thread, now = threading.get_ident(), time.monotonic()
            free = [slot for slot in self.slots if slot.is_idle(thread, now)]
            return min(free, key=lambda slot: slot.used, default=None)
        if len(free) == 1:
            return free[0]
        shared = {
            slot: common_prefix(slot.session.tokens, tokens)
            if slot.session.adapter is adapter
            else 0
            for slot in free
        }
        fitting = max(free, key=lambda slot: shared[slot])
        oldest = min(free, key=lambda slot: slot.used)

        def lost(slot: Slot) -> int:
            return slot.session.length - shared[slot]

        # What they share can be copied (see `place`), so the one that loses less is taken.
        return fitting if lost(fitting) <= lost(oldest) else oldest


class _Owner:
    """Has a sequence while a state is moved into it."""


def check_state(session: Session, state: CacheRows) -> None:
    """Raise BadInput unless a state has the types and shapes of the session's own."""
    own = [(array.dtype, array.shape[:2], array.shape[3:]) for array in session.state(0)]
    if own != [(array.dtype, array.shape[:2], array.shape[3:]) for array in state]:
        raise BadInput("the saved state does not have this model's shapes; delete it")


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = zip(left, right, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
