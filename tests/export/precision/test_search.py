"""Where `auto` goes when the gate's own text has spoken."""

import pytest

from edgelm.bundle.records.gates import GATES, Figures
from edgelm.export.precision.search import Search
from edgelm.quantize.precision import Fp16
from tests.export.precision.test_bisect import figures, frontier

FAILED = figures(kl=2 * GATES["4-bit"].max_kl)


def search(sizes: dict[str, int], position: int = 0) -> Search:
    sensitivity = {group: 0.1 * 0.9**n for n, group in enumerate(sizes)}
    return Search(frontier(sensitivity, sizes), Fp16(), position)


@pytest.fixture
def even() -> Search:
    """40 groups of the same size."""
    return search({f"layers.{n}": 100 for n in range(40)})


def test_a_pass_at_once_is_as_small_as_it_gets(even: Search) -> None:
    even.position = 7
    assert even.next_smaller() is None
    assert even.position == 7


def test_after_a_failure_it_goes_halfway_back(even: Search) -> None:
    even.position = 4
    even.next_larger(FAILED)
    position = even.position
    assert position > 8
    assert even.next_smaller() == even.frontier.at((4 + position) // 2 + 1)


def test_it_goes_back_to_the_last_failure_not_the_first(even: Search) -> None:
    even.next_larger(FAILED)
    middle = even.position
    even.next_larger(FAILED)
    even.next_smaller()
    assert even.position > middle


def test_little_to_gain_is_left(even: Search) -> None:
    even.position = 4
    even.next_larger(figures(kl=1.001 * GATES["4-bit"].max_kl))
    assert even.position == 5
    assert even.next_smaller() is None  # 100 of 4,500 bytes


def test_one_step_with_all_the_bytes() -> None:
    one = search({"big": 10_000, "small": 1})
    one.position = next(n for n, step in enumerate(one.frontier.steps) if step.group == "big")
    one.last_failed, one.position = one.position, one.position + 1
    assert one.next_smaller() is None


def test_nothing_is_left_above_whole_weights(even: Search) -> None:
    even.position = even.frontier.last_step
    assert set(even.next_larger(FAILED).values()) == {Fp16()}  # type: ignore[union-attr]
    assert even.next_smaller() is None
    assert even.next_larger(Figures(1.0, 0.0, 9.0, 9.0, 1)) is None
