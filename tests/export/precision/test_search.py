"""Where `auto` goes when the gate's own text has spoken."""

import pytest

from edgelm.bundle.gates import GATES, Figures
from edgelm.export.precision.search import Search
from edgelm.quantize.precision import Fp16
from tests.export.precision.test_bisect import figures, frontier

MISSED = figures(kl=2 * GATES["4-bit"].max_kl)


def search(sizes: dict[str, int], raised: int = 0) -> Search:
    sensitivity = {group: 0.1 * 0.9**n for n, group in enumerate(sizes)}
    return Search(frontier(sensitivity, sizes), Fp16(), raised)


@pytest.fixture
def even() -> Search:
    """40 groups of the same size."""
    return search({f"layers.{n}": 100 for n in range(40)})


def test_a_pass_at_once_is_as_small_as_it_gets(even: Search) -> None:
    even.raised = 7
    assert even.less() is None
    assert even.raised == 7


def test_after_a_miss_it_goes_halfway_back(even: Search) -> None:
    even.raised = 4
    even.more(MISSED)
    raised = even.raised
    assert raised > 8
    assert even.less() == even.frontier.rung((4 + raised) // 2 + 1)


def test_it_goes_back_to_the_last_miss_not_the_first(even: Search) -> None:
    even.more(MISSED)
    middle = even.raised
    even.more(MISSED)
    even.less()
    assert even.raised > middle


def test_little_to_gain_is_left(even: Search) -> None:
    even.raised = 4
    even.more(figures(kl=1.001 * GATES["4-bit"].max_kl))
    assert even.raised == 5
    assert even.less() is None  # 100 of 4,500 bytes


def test_one_step_with_all_the_bytes() -> None:
    one = search({"big": 10_000, "small": 1})
    one.raised = next(n for n, step in enumerate(one.frontier.steps) if step.group == "big")
    one.missed, one.raised = one.raised, one.raised + 1
    assert one.less() is None


def test_nothing_is_left_above_whole_weights(even: Search) -> None:
    even.raised = even.frontier.top
    assert set(even.more(MISSED).values()) == {Fp16()}  # type: ignore[union-attr]
    assert even.less() is None
    assert even.more(Figures(1.0, 0.0, 9.0, 9.0, 1)) is None
