"""What is already in the cache is not run again, and changes nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import edgelm
from edgelm.runtime import LanguageModel
from edgelm.runtime.engines.session import Logits, Session, Tokens

SHARED = np.random.default_rng(2).integers(4, 320, 30).tolist()
COUNT = 15


class Counting:
    """A session that notes how many tokens each call runs."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.runs: list[int] = []

    def advance(self, tokens: Tokens, *, logits: int = 1) -> Logits:
        self.runs.append(len(tokens))
        return self.session.advance(tokens, logits=logits)

    def __getattr__(self, name: str) -> object:
        return getattr(self.session, name)


@pytest.fixture
def fresh(bundle: Path) -> Iterator[LanguageModel]:
    """Another instance of the same bundle, for what an empty cache gives."""
    with edgelm.load(bundle, threads=1) as model:
        yield model


def count_runs(lm: LanguageModel) -> list[int]:
    counting = Counting(lm.session)
    lm._sequences.slots[0].session = counting  # type: ignore[assignment]
    return counting.runs


def answer(lm: LanguageModel, ids: list[int], count: int = COUNT) -> list[int]:
    chunks = lm.stream(np.array(ids, dtype=np.int64), max_tokens=count)
    return [chunk.token for chunk in chunks if chunk.token is not None]


SECOND: dict[str, tuple[Callable[[list[int]], list[int]], int]] = {
    "next turn": (lambda said: [*SHARED, *said[:-1], 7, 8], 2),
    "shared prefix": (lambda _: [*SHARED[:20], 9, 10, 11], 3),
    "same": (lambda _: SHARED, 1),
    "shorter": (lambda _: SHARED[:12], 1),
    "different": (lambda _: [200, *SHARED], 31),
}


@pytest.mark.parametrize(("second", "prefilled"), SECOND.values(), ids=SECOND)
def test_second_request(
    lm: LanguageModel,
    fresh: LanguageModel,
    second: Callable[[list[int]], list[int]],
    prefilled: int,
) -> None:
    said = answer(lm, SHARED)
    ids = second(said)
    runs = count_runs(lm)
    again = answer(lm, ids)
    assert again == answer(fresh, ids)
    assert runs == [prefilled, *[1] * (len(again) - 1)]


def test_a_whole_answer_comes_back_as_prompt(lm: LanguageModel, fresh: LanguageModel) -> None:
    said = answer(lm, SHARED)
    ids = [*SHARED, *said]  # the last token was chosen but not yet read by the model
    runs = count_runs(lm)
    assert answer(lm, ids) == answer(fresh, ids)
    assert runs[0] == 1


def test_after_a_rewind_the_first_request_comes_out_as_before(lm: LanguageModel) -> None:
    first = answer(lm, SHARED)
    answer(lm, [*SHARED[:5], 100, 101])
    answer(lm, [50])
    assert answer(lm, SHARED) == first


def test_after_an_abandoned_answer(lm: LanguageModel, fresh: LanguageModel) -> None:
    chunks = lm.stream(np.array(SHARED, dtype=np.int64))
    for _ in range(3):
        next(chunks)
    ids = [*SHARED, 7, 8]
    assert answer(lm, ids) == answer(fresh, ids)


def test_after_a_failed_request(lm: LanguageModel, fresh: LanguageModel) -> None:
    answer(lm, SHARED)

    def explode() -> bool:
        raise RuntimeError("cancelled from outside")

    with pytest.raises(RuntimeError, match="from outside"):
        list(lm.stream(np.array([*SHARED[:8], 3], dtype=np.int64), cancel=explode))
    ids = [*SHARED, 9]
    assert answer(lm, ids) == answer(fresh, ids)
