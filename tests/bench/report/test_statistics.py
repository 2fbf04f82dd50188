import pytest

from edgelm.bench.report.statistics import Percentiles, outliers, percentile


@pytest.mark.parametrize(
    ("samples", "share", "expected"),
    [
        ([5.0], 50, 5.0),
        ([5.0], 99, 5.0),
        ([1.0, 2.0], 50, 1.5),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([4.0, 1.0, 3.0, 2.0], 50, 2.5),
        # Eleven ranks from 0 to 10: the p-th percentile is rank p / 10.
        (list(range(0, 110, 10)), 10, 10.0),
        (list(range(0, 110, 10)), 90, 90.0),
        (list(range(0, 110, 10)), 99, 99.0),
        (list(range(0, 110, 10)), 0, 0.0),
        (list(range(0, 110, 10)), 100, 100.0),
        # Five ranks from 0 to 4: the 90th lies at 3.6.
        ([10.0, 20.0, 30.0, 40.0, 100.0], 90, 40 + 0.6 * 60),
        ([10.0, 20.0, 30.0, 40.0, 100.0], 10, 10 + 0.4 * 10),
        ([2.0, 2.0, 2.0], 90, 2.0),
    ],
)
def test_percentile(samples: list[float], share: float, expected: float) -> None:
    assert percentile(samples, share) == pytest.approx(expected)


def test_percentile_leaves_its_input_alone() -> None:
    samples = [3.0, 1.0, 2.0]
    percentile(samples, 50)
    assert samples == [3.0, 1.0, 2.0]


def test_percentiles_keep_every_sample_in_order() -> None:
    rates = Percentiles.from_samples([30.0, 10.0, 20.0])
    assert (rates.median, rates.p10, rates.p90) == pytest.approx((20.0, 12.0, 28.0))
    assert rates.samples == (30.0, 10.0, 20.0)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([100.0, 101.0, 99.0, 100.0, 60.0], [60.0]),
        ([100.0, 100.0, 100.0, 111.0, 89.0], [111.0, 89.0]),
        ([100.0, 100.0, 100.0, 109.0], []),  # within a tenth of the median
        ([100.0, 120.0, 80.0, 110.0, 90.0, 60.0], []),  # all of them vary that much
        ([100.0, 100.0, 10.0], []),  # of three nobody knows
        ([100.0], []),
        ([0.0, 0.0, 0.0, 0.0], []),
    ],
)
def test_outliers(samples: list[float], expected: list[float]) -> None:
    assert outliers(samples) == expected
