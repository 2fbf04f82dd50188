"""The order in which groups are raised, and the search for the fewest that pass."""

import math

import pytest

from edgelm.export.auto import Assignment, Ladder, margin, smallest_passing
from edgelm.gates import GATES, Figures
from edgelm.precision import Int4, Int8

LOW, HIGH = Int4(32), Int8(32)


def figures(kl: float = 0.0, top1: float = 1.0, ratio: float = 1.0) -> Figures:
    return Figures(kl, top1, ratio, perplexity=20.0, tokens=1000)


def test_ladder_by_hand() -> None:
    sensitivity = {"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.2}
    sizes = {"a": 10, "b": 400, "c": 30, "d": 100}
    # KL saved per element: a 0.01, b 0.001, c 0.01, d 0.002; equal ones keep their order.
    ladder = Ladder.of(sensitivity, sizes, LOW, HIGH)
    assert ladder.groups == ("a", "c", "d", "b")
    assert ladder.left == pytest.approx((1.0, 0.9, 0.6, 0.4, 0.0))
    assert ladder.top == 4
    assert ladder.rung(0) == {"a": LOW, "c": LOW, "d": LOW, "b": LOW}
    assert ladder.rung(2) == {"a": HIGH, "c": HIGH, "d": LOW, "b": LOW}
    assert set(ladder.rung(4).values()) == {HIGH}


@pytest.mark.parametrize(
    ("left", "raised"),
    [(2.0, 0), (1.0, 0), (0.95, 1), (0.9, 1), (0.5, 3), (0.0, 4), (-1.0, 4)],
)
def test_first_below(left: float, raised: int) -> None:
    ladder = Ladder(("a", "c", "d", "b"), (1.0, 0.9, 0.6, 0.4, 0.0), LOW, HIGH)
    assert ladder.first_below(left) == raised


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (figures(), 0.0),
        (figures(kl=0.05), 0.5),
        (figures(top1=0.925), 0.25),  # half of the allowed disagreement, squared
        (figures(ratio=math.sqrt(1.08)), 0.5),
        (figures(ratio=0.9), 0.0),  # better than the source is no debt
        (figures(kl=0.03, top1=0.70, ratio=1.01), 4.0),
        (figures(GATES["4-bit"].max_kl, GATES["4-bit"].min_top1, 1.08), 1.0),
    ],
    ids=["none", "kl", "top-1", "perplexity", "lucky", "worst-of-three", "the-limit"],
)
def test_margin(given: Figures, expected: float) -> None:
    assert margin(given) == pytest.approx(expected)


class Measured:
    """A model whose KL is what is left on the ladder times a factor, plus what 8 bits cost."""

    def __init__(self, ladder: Ladder, factor: float, floor: float = 0.0) -> None:
        self.ladder, self.factor, self.floor = ladder, factor, floor
        self.asked: list[int] = []

    def kl(self, raised: int) -> float:
        return self.factor * self.ladder.left[raised] + self.floor

    def __call__(self, assignment: Assignment) -> Figures:
        raised = sum(precision == HIGH for precision in assignment.values())
        assert assignment == self.ladder.rung(raised)
        self.asked.append(raised)
        return figures(kl=self.kl(raised))


@pytest.fixture
def ladder() -> Ladder:
    """30 groups, each three quarters as sensitive as the one before."""
    sensitivity = {f"layers.{i}": 0.25 * 0.75**i for i in range(30)}
    return Ladder.of(sensitivity, dict.fromkeys(sensitivity, 100), LOW, HIGH)


@pytest.mark.parametrize("factor", [0.05, 0.2, 0.6, 1.0, 2.0, 8.0, 50.0], ids="kl-times-{}".format)
def test_search_finds_a_rung_that_passes(ladder: Ladder, factor: float) -> None:
    measure = Measured(ladder, factor)
    raised = smallest_passing(ladder, measure, aim=0.93)
    limit = 0.93 * GATES["4-bit"].max_kl
    assert measure.kl(raised) <= limit
    assert raised in measure.asked
    assert len(measure.asked) == len(set(measure.asked)) <= 6
    # The fewest, or one that uses the gate nearly up.
    fewest = next(n for n in range(31) if measure.kl(n) <= limit)
    assert raised == fewest or measure.kl(raised) >= (0.93 - 0.05) * GATES["4-bit"].max_kl


def test_nothing_is_raised_where_four_bits_pass(ladder: Ladder) -> None:
    measure = Measured(ladder, 0.05)
    assert smallest_passing(ladder, measure) == 0
    assert len(measure.asked) <= 2


def test_all_are_raised_where_nothing_passes(ladder: Ladder) -> None:
    measure = Measured(ladder, 1.0, floor=5.0)
    assert smallest_passing(ladder, measure) == ladder.top
    assert len(measure.asked) <= 6


def test_a_ladder_that_jumps(ladder: Ladder) -> None:
    """One group holds nearly everything; the guess from what is left does not mislead."""
    sensitivity = {"big": 10.0, "small": 0.001, "smaller": 0.0005}
    steep = Ladder.of(sensitivity, {"big": 1000, "small": 1, "smaller": 1}, LOW, HIGH)
    measure = Measured(steep, 1.0)
    raised = smallest_passing(steep, measure)
    assert steep.groups[:raised] == ("big",)


def test_a_model_without_error(ladder: Ladder) -> None:
    flat = Ladder.of({"a": 0.0, "b": 0.0}, {"a": 1, "b": 1}, LOW, HIGH)
    assert smallest_passing(flat, Measured(flat, 1.0)) == 0
