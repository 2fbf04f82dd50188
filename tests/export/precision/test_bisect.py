"""The search for the fewest steps along a frontier that pass."""

import math

import pytest

from edgelm.bundle.records.gates import GATES, Figures
from edgelm.export.precision.bisect import margin, smallest_passing
from edgelm.export.precision.frontier import Choice, Frontier
from edgelm.export.precision.legalize import Assignment
from edgelm.quantize.precision import Int4, Int8

LOW, HIGH = Int4(32), Int8(32)


def figures(kl: float = 0.0, top1: float = 1.0, ratio: float = 1.0) -> Figures:
    return Figures(kl, top1, ratio, perplexity=20.0, tokens=1000)


def frontier(sensitivity: dict[str, float], sizes: dict[str, int]) -> Frontier:
    """Every group at 4 bits with its KL, or at 8 without any."""
    return Frontier.from_choices(
        {
            group: [Choice(LOW, size, sensitivity[group]), Choice(HIGH, 2 * size, 0.0)]
            for group, size in sizes.items()
        }
    )


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
    """A model whose KL is what the frontier expects times a factor, plus what 8 bits cost."""

    def __init__(self, path: Frontier, factor: float, floor: float = 0.0) -> None:
        self.path, self.factor, self.floor = path, factor, floor
        self.positions: list[int] = []

    def kl(self, position: int) -> float:
        return self.factor * self.path.remaining_kl[position] + self.floor

    def __call__(self, assignment: Assignment) -> Figures:
        position = sum(precision == HIGH for precision in assignment.values())
        assert assignment == self.path.at(position)
        self.positions.append(position)
        return figures(kl=self.kl(position))


@pytest.fixture
def path() -> Frontier:
    """30 groups, each three quarters as sensitive as the one before."""
    sensitivity = {f"layers.{i}": 0.25 * 0.75**i for i in range(30)}
    return frontier(sensitivity, dict.fromkeys(sensitivity, 100))


@pytest.mark.parametrize("factor", [0.05, 0.2, 0.6, 1.0, 2.0, 8.0, 50.0], ids="kl-times-{}".format)
def test_search_finds_a_step_that_passes(path: Frontier, factor: float) -> None:
    measure = Measured(path, factor)
    position = smallest_passing(path, measure, target=0.93)
    most = (0.93 + 0.05) * GATES["4-bit"].max_kl
    assert measure.kl(position) <= most
    assert position in measure.positions
    assert len(measure.positions) == len(set(measure.positions)) <= 6
    # The fewest, or one that uses the gate nearly up.
    fewest = next(n for n in range(31) if measure.kl(n) <= most)
    assert position == fewest or measure.kl(position) >= (0.93 - 0.05) * GATES["4-bit"].max_kl


def test_a_candidate_close_to_the_target_is_taken(path: Frontier) -> None:
    measure = Measured(path, 1.0)
    guess = path.first_below(0.93 * GATES["4-bit"].max_kl)
    measure.factor = 0.97 * GATES["4-bit"].max_kl / path.remaining_kl[guess]
    assert smallest_passing(path, measure) == guess
    assert measure.positions == [guess]


@pytest.mark.parametrize(("factor", "cliff"), [(1.0, 0.0905), (0.8, 0.0705)])
def test_search_stops_where_little_is_left_to_gain(factor: float, cliff: float) -> None:
    """500 small groups, and figures that tell no more than on which side of a cliff one is."""
    sensitivity = {f"layers.{i}": 0.002 * 0.99**i for i in range(500)}
    path = frontier(sensitivity, dict.fromkeys(sensitivity, 100))

    class Cliff(Measured):
        def kl(self, position: int) -> float:
            return 0.10 if super().kl(position) > cliff else 0.08

    measure = Cliff(path, factor)
    position = smallest_passing(path, measure, target=0.93)
    assert measure.kl(position) == 0.08
    assert position in measure.positions
    assert len(measure.positions) <= 4
    fewest = next(n for n in range(501) if measure.kl(n) == 0.08)
    assert path.sizes[position] - path.sizes[fewest] <= 0.025 * path.sizes[position]


def test_nothing_is_position_where_four_bits_pass(path: Frontier) -> None:
    measure = Measured(path, 0.05)
    assert smallest_passing(path, measure) == 0
    assert len(measure.positions) <= 2


def test_all_are_position_where_nothing_passes(path: Frontier) -> None:
    measure = Measured(path, 1.0, floor=5.0)
    assert smallest_passing(path, measure) == path.last_step
    assert len(measure.positions) <= 6


def test_a_frontier_that_jumps(path: Frontier) -> None:
    """One group holds nearly everything; the guess from what is left does not mislead."""
    sensitivity = {"big": 10.0, "small": 0.001, "smaller": 0.0005}
    steep = frontier(sensitivity, {"big": 1000, "small": 1, "smaller": 1})
    measure = Measured(steep, 1.0)
    position = smallest_passing(steep, measure)
    assert [step.group for step in steep.steps[:position]] == ["big"]


def test_a_model_without_error(path: Frontier) -> None:
    flat = frontier({"a": 0.0, "b": 0.0}, {"a": 1, "b": 1})
    assert smallest_passing(flat, Measured(flat, 1.0)) == 0
