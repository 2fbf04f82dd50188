"""Whether tokens of several sequences give in one run what each gives alone, bit for bit.

The kernels for 8-bit weights add each row in the same order, however many rows there are; those for
4 bits and for fp32 do not on every processor. Logits then differ by rounding, and a greedy answer
may depend on which others were written at the same time.
"""

from contextlib import ExitStack

import numpy as np

from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.session import Logits, Session


def exact_batch(session: Session, sequences: int) -> int:
    """How many sequences can take a token each in one run without a change of any bit.

    Args:
        session: of a bundle, and empty; siblings of it are opened meanwhile.
        sequences: the most.

    Returns:
        `sequences`, or 1 where a run of fewer of them changes a bit, or the graph takes only one.
    """
    if not isinstance(session, EngineSession) or session.engine.batch is None:
        return 1
    with ExitStack() as stack:
        siblings = [stack.enter_context(session.sibling()) for _ in range(sequences)]
        tokens = np.random.default_rng(0).integers(
            0, session.vocab_size, (sequences, sequences + 1)
        )
        alone = []
        for count, (sibling, row) in enumerate(zip(siblings, tokens, strict=True), 1):
            sibling.advance(row[:count])
            alone.append(sibling.advance(row[-1:]).copy())
        equal = all(
            _equal(siblings[:size], tokens[:size, -1].tolist(), alone)
            for size in range(2, sequences + 1)
        )
    return sequences if equal else 1


def _equal(siblings: list[EngineSession], tokens: list[int], alone: list[Logits]) -> bool:
    for count, sibling in enumerate(siblings, 1):
        sibling.rewind(count)
    together = EngineSession.advance_each(siblings, tokens)
    return all((row == one).all() for row, one in zip(together, alone, strict=False))
