"""A draft model brought up to date with a text that is longer than a chunk."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from edgelm.runtime import LanguageModel
from edgelm.runtime.engines.session import Cancelled
from edgelm.runtime.speculation.costs import StepCosts
from edgelm.runtime.speculation.drafts.draft_model import DraftModel


@pytest.fixture
def draft(int8_lm: LanguageModel) -> DraftModel:
    return DraftModel(int8_lm.session, int8_lm.session.vocab_size)


def text(draft: DraftModel, chunks: int) -> list[int]:
    tokens = np.random.default_rng(1).integers(4, 320, chunks * draft.session.chunk + 5)
    found: list[int] = tokens.tolist()
    return found


def test_a_long_text_is_read_in_turns_of_a_chunk(draft: DraftModel) -> None:
    history = text(draft, 2)
    lengths = list[int]()

    @contextmanager
    def turn() -> Iterator[None]:
        before = draft.session.length
        yield
        lengths.append(draft.session.length - before)

    tokens = draft.propose(history, 3, StepCosts(), turn)
    chunk = draft.session.chunk
    assert lengths == [chunk, chunk, 5 + 2]
    draft.session.rewind(0)
    assert draft.propose(history, 3, StepCosts()) == tokens
    draft.session.rewind(0)
    row = draft.session.advance(np.array(history))
    assert tokens[0] == int(row[-1].argmax())


def test_a_cancelled_one_reads_no_further(draft: DraftModel) -> None:
    history, turns = text(draft, 2), list[int]()

    @contextmanager
    def turn() -> Iterator[None]:
        turns.append(draft.session.length)
        if len(turns) == 2:
            raise Cancelled
        yield

    with pytest.raises(Cancelled):
        draft.propose(history, 3, StepCosts(), turn)
    chunk = draft.session.chunk
    assert turns == [0, chunk]
    assert draft.session.tokens == history[:chunk]
    assert len(draft.propose(history, 3, StepCosts())) == 3, "it continues from there"
