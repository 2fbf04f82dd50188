"""Several sequences over one copy of the weights, and the state of one moved to another."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgelm.bundle import read_manifest
from edgelm.errors import BadInput
from edgelm.runtime.engines.open import open_session
from edgelm.runtime.engines.session import Session
from tests.checkpoints.tiny_chat import CONTEXT

FIRST = np.random.default_rng(1).integers(4, 320, 20)
SECOND = np.random.default_rng(2).integers(4, 320, 20)


@pytest.fixture
def session(bundle: Path) -> Iterator[Session]:
    manifest = read_manifest(bundle)
    with open_session(bundle, manifest, capacity=manifest.limits.context, threads=1) as session:
        yield session


def test_siblings_share_weights_and_nothing_else(session: Session) -> None:
    alone = session.advance(FIRST).copy()
    session.rewind(0)
    sibling = session.sibling()
    ours, theirs = [], []
    for one, other in zip(FIRST, SECOND, strict=True):  # by turns
        ours.append(session.advance(np.array([one])).copy())
        theirs.append(sibling.advance(np.array([other])).copy())
    np.testing.assert_allclose(ours[-1], alone, atol=1e-4)
    assert np.abs(ours[-1] - theirs[-1]).max() > 0.1
    sibling.close()
    session.advance(SECOND[:1])
    with pytest.raises(BadInput, match="this model is closed"):
        sibling.advance(SECOND[:1])


def test_a_state_moves_to_another_sequence(session: Session) -> None:
    session.advance(FIRST)
    sibling = session.sibling()
    sibling.restore(FIRST[:12].tolist(), session.state(12))
    assert sibling.tokens == FIRST[:12].tolist()
    np.testing.assert_array_equal(sibling.advance(FIRST[12:13]), _after(session, 12, FIRST[12]))
    sibling.close()


def _after(
    session: Session, length: int, token: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    session.rewind(length)
    return session.advance(np.array([token])).copy()


def test_states_that_do_not_fit(session: Session) -> None:
    session.advance(FIRST)
    state = session.state(12)
    with pytest.raises(BadInput, match="was not saved after these 11 tokens"):
        session.restore(FIRST[:11].tolist(), state)
    with pytest.raises(BadInput, match="the cache holds 20 tokens, not 21"):
        session.state(21)
    wide = [np.repeat(rows[:, :, :1], CONTEXT + 1, axis=2) for rows in state]
    with pytest.raises(BadInput, match="do not fit in a context"):
        session.restore([5] * (CONTEXT + 1), wide)
    assert session.tokens == FIRST.tolist()
