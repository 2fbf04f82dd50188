"""Memory to compile, and cutting a graph into segments, worked by hand."""

from itertools import combinations, pairwise

import pytest

from edgelm.devices.planner.memory.build_memory import (
    BUILD_FACTORS,
    build_peak,
    compiles,
    cut,
    segment_bytes,
    segments_needed,
)

RTX = BUILD_FACTORS["tensorrt-rtx"]
PARTS = (500, 100, 100, 100, 100, 100, 100, 300)


def test_a_whole_graph_is_held_several_times() -> None:
    expected = int(RTX.fixed_bytes + RTX.copies * 1_000_000_000)
    assert build_peak("tensorrt-rtx", [1_000_000_000]) == expected


def test_versions_of_an_engine_have_its_factor() -> None:
    assert build_peak("tensorrt-10.3", [10**9]) == build_peak("tensorrt", [10**9])
    assert compiles("tensorrt-10.3")
    assert not compiles("onnxruntime-cuda")


def test_segments_take_as_much_as_the_largest_of_them() -> None:
    peak = build_peak("tensorrt-rtx", [400_000_000, 300_000_000, 300_000_000])
    assert peak == build_peak("tensorrt-rtx", [400_000_000])


@pytest.mark.parametrize(
    ("largest", "measured"),
    [(57, 617), (68, 753), (129, 1037), (788, 2_997), (1_051, 3_382), (2_977, 10_433)],
)
def test_the_factors_of_tensorrt_rtx_cover_what_was_measured(largest: int, measured: int) -> None:
    """docs/results/2026-11-27-segments.md: too little would get a build killed."""
    peak = build_peak("tensorrt-rtx", [largest * 1_000_000]) / 1e6
    assert 0.99 * measured <= peak <= 1.35 * measured


@pytest.mark.parametrize("count", range(1, 9))
def test_the_largest_segment_is_the_smallest_possible(count: int) -> None:
    def largest(bounds: tuple[int, ...]) -> int:
        edges = (0, *bounds, len(PARTS))
        return max(sum(PARTS[a:b]) for a, b in pairwise(edges))

    every = combinations(range(1, len(PARTS)), count - 1)
    assert max(segment_bytes(PARTS, count)) == min(largest(bounds) for bounds in every)
    assert [index for one in cut(PARTS, count) for index in one] == list(range(len(PARTS)))
    assert len(cut(PARTS, count)) <= count
    assert all(len(one) for one in cut(PARTS, count))


def test_more_segments_than_parts_are_the_parts() -> None:
    assert segment_bytes((5, 5, 5), 10) == (5, 5, 5)


def test_the_fewest_segments_that_fit() -> None:
    parts = (100_000_000,) * 20
    whole, halves = (build_peak("tensorrt-rtx", segment_bytes(parts, n)) for n in (1, 2))
    assert segments_needed("tensorrt-rtx", parts, whole) == 1
    assert segments_needed("tensorrt-rtx", parts, whole - 1) == 2
    assert segments_needed("tensorrt-rtx", parts, halves - 1) == 3


def test_no_number_of_segments_helps_where_one_part_alone_is_too_much() -> None:
    largest = build_peak("tensorrt", [10**9])
    assert segments_needed("tensorrt", (10**9, 10**8), largest) == 2
    assert segments_needed("tensorrt", (10**9, 10**8), largest - 1) is None
