"""Whether a run of several tokens computes each exactly as a run of one does, bit for bit.

Kernels of matrix products may add in another order for several rows than for one; logits then
differ by rounding, and where two tokens are nearly as probable the answer may differ. Which sizes
do is a matter of the processor, the library and the weights' groups, so each size is compared once,
when it is first used: its first two tokens are run alone, then again with the others. Rows that a
windowed layer drops within a run are known before (`exact_size`).
"""

from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.session import Logits, Session


class Exactness:
    """What was found out about the sizes of a model's runs."""

    def __init__(self) -> None:
        self._equal: dict[int, bool] = {}

    def known(self, size: int) -> bool:
        """Whether a size was compared."""
        return size in self._equal

    def compare(self, size: int, alone: Logits, together: Logits) -> bool:
        """Take note of the logits [n, vocab_size] of tokens run alone and with others."""
        equal = bool((alone == together).all())
        self._equal[size] = equal
        return equal

    @property
    def exact(self) -> bool:
        """Whether no size has differed so far."""
        return all(self._equal.values())


def exact_size(session: Session, most: int) -> int:
    """How many tokens, up to `most`, the next run may take so that no layer moves rows within it.

    At least one.
    """
    state = session.engine.recurrent if isinstance(session, EngineSession) else None
    return most if state is None else state.together(session.length, most)
