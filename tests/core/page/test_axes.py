"""Ranges and ticks of axes."""

import math

import pytest

from edgelm.page.axes import Axis, Range, short_number


def test_a_range_has_a_margin() -> None:
    around = Range.around([10.0, 20.0], Axis("x"))
    assert (around.low, around.high) == pytest.approx((9.6, 20.4))
    assert around.share(15.0) == pytest.approx(0.5)


def test_zero_is_the_end_of_an_axis_that_starts_there() -> None:
    around = Range.around([10.0, 20.0], Axis("x", from_zero=True))
    assert (around.low, around.high) == pytest.approx((0.0, 20.8))


def test_negative_values_stay_on_an_axis_from_zero() -> None:
    around = Range.around([-1.0, 1.0], Axis("x", from_zero=True))
    assert 0 < around.share(-1.0) < around.share(0.0) < around.share(1.0) < 1


def test_a_logarithmic_range() -> None:
    around = Range.around([0.01, 1.0], Axis("x", log=True))
    assert around.share(0.1) == pytest.approx(0.5)


@pytest.mark.parametrize("values", [[], [0.0], [5.0, 5.0], [-3.0], [1e-9, 1e9], [-1e299, 1e299]])
def test_every_range_has_a_width_and_ticks(values: list[float]) -> None:
    around = Range.around(values, Axis("x"))
    assert all(0 <= around.share(value) <= 1 for value in values)
    ticks = around.ticks()
    assert 2 <= len(ticks) <= 8
    assert all(-1e-9 <= around.share(tick) <= 1 + 1e-9 for tick in ticks)


@pytest.mark.parametrize(
    "values", [[1.0], [3.0, 3.1], [0.01, 0.4], [1e-5, 1.0], [1e-20, 1e20], [2.0, 3000.0]]
)
def test_every_logarithmic_range_has_ticks(values: list[float]) -> None:
    around = Range.around(values, Axis("x", log=True))
    ticks = around.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(-1e-9 <= around.share(tick) <= 1 + 1e-9 for tick in ticks)


def test_ticks_are_round() -> None:
    assert Range(0.0, 10.0).ticks() == [0, 2, 4, 6, 8, 10]
    assert Range(-2.3, 0.0, log=True).ticks() == pytest.approx([0.01, 0.1, 1.0])
    assert Range(-1.3, 0.0, log=True).ticks() == pytest.approx([0.1, 0.2, 0.5, 1.0])


def test_what_has_no_place_is_not_shown() -> None:
    assert not any(Axis("x").shows(value) for value in (math.nan, math.inf, -math.inf, 1e305))
    assert not Axis("x", log=True).shows(0.0)
    assert Axis("x").shows(0.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.5, "1.5"), (1500.0, "1.5k"), (-2e6, "-2M"), (1e9, "1G"), (1e15, "1e+15")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text
