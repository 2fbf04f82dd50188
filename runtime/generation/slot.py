"""A sequence of a model, and which generation has it."""

import weakref

from edgelm.runtime.engines.session import Session
from edgelm.runtime.speculation.drafts.draft_model import Draft

_IDLE_SECONDS = 0.5  # after which a sequence that nobody continues is given to a waiting request


class Slot:
    """A sequence and who has it."""

    def __init__(self, session: Session, draft: Draft | None = None) -> None:
        self.session = session
        self.draft = draft
        self.owner: weakref.ref[object] | None = None
        self.running = False
        self.thread = 0
        self.used = 0.0

    def is_free(self) -> bool:
        """Whether no generation has it, or that one was dropped."""
        return self.owner is None or (self.owner() is None and not self.running)

    def is_idle(self, thread: int, now: float) -> bool:
        """Whether it may be taken from its generation, for a request of `thread`."""
        return not self.running and (self.thread == thread or now - self.used > _IDLE_SECONDS)
