"""The ranking of candidates by a short distillation, interrupted or not."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import edgelm.compress.search.search as module
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.model import spec_of
from edgelm.compress.pruning.importance import Importance, score
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.search.candidates import Candidate, CostModel
from edgelm.compress.search.search import search
from edgelm.compress.search.settings import Budget, SearchSettings
from edgelm.devices.profile import load_profile
from tests.compress.training import SETTINGS, rows, teacher_and_student


class Searched:
    """A search of a tiny teacher for a share of its parameters."""

    def __init__(self, folder: Path) -> None:
        self.teacher, _ = teacher_and_student()
        self.importance: Importance = score(self.teacher, [rows().batch(range(8))])
        self.cost = CostModel(spec_of(self.teacher), load_profile("cpu"), Budget(parameters=0.7))
        self.folder = folder
        self.rounds: list[list[Candidate]] = []

    def __call__(
        self,
        die_in_round: int = 0,
        schedule: Callable[[Shape], Distillation] | None = None,
        **over: Any,
    ) -> list[Candidate]:
        self.rounds.clear()

        def report(what: str, candidates: Sequence[Candidate]) -> None:
            if what == "distilled":
                self.rounds.append(list(candidates))
                if len(self.rounds) == die_in_round:
                    raise KeyboardInterrupt

        settings = SearchSettings(
            **{
                "candidates": 4,
                "finalists": 2,
                "kd_rounds": 3,
                "round_steps": 2,
                "warmup_steps": 1,
                "settled_rounds": 0,
                "min_ratio": 0.6,
                **over,
            }
        )
        held_out = rows(seed=1).batch(range(4))
        return search(
            self.teacher,
            self.importance,
            self.cost,
            rows(),
            held_out,
            settings,
            schedule or (lambda _: settings.schedule(SETTINGS)),
            self.folder,
            report=report,
        )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[Candidate]:
    return Searched(tmp_path_factory.mktemp("search"))(patience=9)


def test_best_first(uninterrupted: list[Candidate]) -> None:
    finalists, others = uninterrupted[:2], uninterrupted[2:]
    assert [len(one.distilled) for one in uninterrupted] == [3, 3, *[0] * len(others)]
    assert [one.loss for one in finalists] == sorted(one.loss for one in finalists)
    assert [one.pruned for one in others] == sorted(one.loss for one in others)
    assert len({one.distilled for one in finalists}) == 2


def test_an_interrupted_search_resumes_to_the_same_result(
    tmp_path: Path, uninterrupted: list[Candidate]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        Searched(tmp_path)(die_in_round=2, patience=9)
    searched = Searched(tmp_path)
    assert searched(patience=9) == uninterrupted
    assert len(searched.rounds) == 3


@pytest.mark.parametrize("tokens", [10**6, 10**8, 94 * 10**9])
def test_finalists_train_at_the_full_rate_however_long_the_run(tokens: int) -> None:
    """On the run's own schedule, the search of a long run would end within its warm-up."""
    run = Distillation(tokens=tokens, learning_rate=1e-4, batch_size=8, sequence_length=512)
    schedule = SearchSettings().schedule(run)
    assert schedule.steps == (72 if tokens == 10**6 else 300)
    rates = [schedule.learning_rate_at(step) for step in range(schedule.steps)]
    assert rates[0] == pytest.approx(1e-5), "ten steps of warm-up"
    assert rates[10:] == pytest.approx([1e-4] * (schedule.steps - 10))


def test_the_end_of_the_run_does_not_matter_for_finalists() -> None:
    """A search is not repeated because the training after it decays in another way."""
    run = Distillation(tokens=10**7, schedule="wsd", stop_after=10**6)
    other = msgspec.structs.replace(
        run, schedule="cosine", stop_after=None, decay=0.5, final_learning_rate=0.0
    )
    assert SearchSettings().schedule(run) == SearchSettings().schedule(other)


def test_a_ranking_is_not_settled_before_its_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_round(*arguments: Any) -> Candidate:
        candidate: Candidate = arguments[2]
        losses = (*candidate.distilled, float(candidate.parameters))
        return msgspec.structs.replace(candidate, distilled=losses)

    monkeypatch.setattr(module, "_one_round", one_round)
    searched = Searched(tmp_path)
    searched(kd_rounds=6, patience=1, settled_rounds=4)
    assert len(searched.rounds) == 4


def test_each_finalist_has_the_losses_of_its_shape(tmp_path: Path) -> None:
    asked: list[Shape] = []

    def schedule(shape: Shape) -> Distillation:
        asked.append(shape)
        return msgspec.structs.replace(SETTINGS, stop_after=None)

    found = Searched(tmp_path)(kd_rounds=1, schedule=schedule)
    assert set(asked) == {one.shape for one in found if one.distilled}


def test_rounds_end_when_the_ranking_is_stable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses that change the order once, in the second round."""
    order = {1: 0, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1}

    def one_round(*arguments: Any) -> Candidate:
        candidate: Candidate = arguments[2]
        number = len(candidate.distilled) + 1
        swapped = -candidate.parameters if order[number] else candidate.parameters
        return msgspec.structs.replace(candidate, distilled=(*candidate.distilled, float(swapped)))

    monkeypatch.setattr(module, "_one_round", one_round)
    searched = Searched(tmp_path)
    searched(finalists=2, kd_rounds=6, patience=2)
    ranks = [[one.parameters for one in each[:2]] for each in searched.rounds]
    assert ranks[0] == sorted(ranks[0])
    assert ranks[1] == sorted(ranks[0], reverse=True)
    assert len(ranks) == 4, "two rounds without a change end it"
    searched(finalists=1, kd_rounds=3)
    assert not searched.rounds, "one needs no distillation to be the best"
