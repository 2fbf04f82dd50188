"""What passes between segments shares memory where it never meets."""

import itertools

import pytest

from edgelm.bundle import CacheContract, GraphContract, GraphSegment, TensorContract
from edgelm.runtime.engines import cuda
from edgelm.runtime.engines.tensorrt.link_memory import LinkMemory
from tests.runtime.fake_gpu import FakeCuda

# a goes from the first to the second segment, b to the third and the fourth, c to the last.
ROW = (
    GraphSegment("1", ("tokens",), ("a", "b")),
    GraphSegment("2", ("a",), ("c",)),
    GraphSegment("3", ("b", "c"), ("d",)),
    GraphSegment("4", ("b", "d"), ("logits",)),
)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    driver = FakeCuda()
    monkeypatch.setattr(cuda, "_binding", lambda: driver)
    return driver


def graph(segments: tuple[GraphSegment, ...], names: str) -> GraphContract:
    links = tuple(TensorContract(name, "float16", (1, "T", 8)) for name in names)
    cache = CacheContract("fp16", 1, 8, ())
    return GraphContract("1", "data", "standard", {}, {}, {}, cache, segments, links)


def test_links_that_meet_have_memory_of_their_own(driver: FakeCuda) -> None:
    memory = LinkMemory(graph(ROW, "abcd"), {"T": 16})
    at = memory.addresses
    assert len({at["a"], at["b"], at["c"]}) == 3, "the second segment reads a while c is written"
    assert at["d"] == at["a"], "a was read for the last time before d is written"
    assert sum(len(block) for block in driver.blocks.values()) == 3 * 2 * 16 * 8
    memory.free()
    assert not driver.blocks


def test_a_row_of_many_segments_takes_two_links(driver: FakeCuda) -> None:
    names = "abcdefgh"
    row = [GraphSegment("0", ("tokens",), ("a",))]
    row += [GraphSegment(two, (one,), (two,)) for one, two in itertools.pairwise(names)]
    memory = LinkMemory(graph((*row, GraphSegment("9", ("h",), ("logits",))), names), {"T": 16})
    assert len(driver.blocks) == 2
    assert all(
        memory.addresses[one] != memory.addresses[two] for one, two in itertools.pairwise(names)
    )
