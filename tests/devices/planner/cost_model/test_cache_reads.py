"""Positions of the cache that a token reads, by hand."""

import pytest

from edgelm.devices.planner.cost_model.cache_reads import READS, USED, CacheReads, grown, whole
from edgelm.devices.planner.cost_model.work import Cache, Work


@pytest.mark.parametrize(
    ("seen", "context", "read"),
    [(1, 4096, 256), (256, 4096, 256), (257, 4096, 512), (3000, 4096, 4096), (3000, 3500, 3500)],
)
def test_a_growing_cache_reads_at_most_twice_what_it_has_seen(
    seen: int, context: int, read: int
) -> None:
    assert grown(seen, context) == read
    assert read <= max(256, 2 * seen)


def test_a_whole_cache_is_read_whole() -> None:
    assert whole(1, 4096) == 4096
    assert CacheReads(whole, windows=False).depth(1, 4096) == 4096


def test_kernels_that_stop_read_what_they_have_seen() -> None:
    assert USED.depth(17, 4096) == 17
    assert READS["ort"] is USED


def test_pairs_of_a_prompt_are_a_triangle_or_a_rectangle() -> None:
    work = Work(
        layers=1,
        linear_parameters=0,
        head_parameters=0,
        linear_bytes=0,
        head_bytes=0,
        resident_bytes=0,
        caches=(Cache(4),),
        attention_width=8,
        attention_layers=1,
    )
    assert USED.pairs(work, 100, 4096) == 100 * 100 / 2 * 8
    assert CacheReads(whole, windows=False).pairs(work, 100, 4096) == 100 * 4096 * 8
