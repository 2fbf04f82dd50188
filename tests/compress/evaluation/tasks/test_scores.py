import math

import msgspec
import pytest

from edgelm.compress.evaluation.metrics import share_of
from edgelm.compress.evaluation.tasks.scores import Score


def test_share_and_its_standard_error() -> None:
    # p = 3/4 of 4: sqrt(3/4 * 1/4 / 4) = sqrt(3) / 8
    found = share_of([True, False, True, True]).score()
    assert (found.value, found.n, found.better, found.is_share) == (0.75, 4, "higher", True)
    assert found.error == pytest.approx(math.sqrt(3) / 8)


@pytest.mark.parametrize(("right", "value"), [([True] * 3, 1), ([False] * 3, 0)], ids=str)
def test_what_always_comes_out_alike_has_no_error(right: list[bool], value: float) -> None:
    assert share_of(right).score() == Score(value, 0, 3, "higher", is_share=True)


def test_more_of_the_same_halves_the_error() -> None:
    few, many = (share_of([True, False] * count).score() for count in (5, 20))
    assert few.error is not None
    assert many.error == pytest.approx(few.error / 2)


def test_scores_are_written_and_read_again() -> None:
    score = Score(3.5, None, 12, "lower")
    assert msgspec.json.decode(msgspec.json.encode(score), type=Score) == score


def test_a_score_never_changes() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        Score(3.5, None, 12, "lower").value = 0  # type: ignore[misc]
