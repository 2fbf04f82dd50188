import pytest

from edgelm.bench.report.statistics import Percentiles, percentile


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


def test_spread_keeps_every_sample_in_order() -> None:
    spread = Percentiles.of([30.0, 10.0, 20.0])
    assert (spread.median, spread.p10, spread.p90) == pytest.approx((20.0, 12.0, 28.0))
    assert spread.samples == (30.0, 10.0, 20.0)
