"""The GPU as the benchmark sees it."""

import pytest

from edgelm.bench.gpu import gpu_bandwidth, measure_gpu
from edgelm.errors import MissingPackage
from edgelm.runtime.engines import cuda
from edgelm.runtime.engines.cuda import find_gpu
from tests.runtime.fake_gpu import FakeCuda


def test_a_copy_takes_a_share_of_the_free_memory_and_gives_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeCuda(memory=1 << 26)
    monkeypatch.setattr(cuda, "_binding", lambda: fake)
    sizes = []

    def allocate(size: int) -> tuple[int, int | None]:
        sizes.append(size)
        return FakeCuda.cudaMalloc(fake, size)

    monkeypatch.setattr(fake, "cudaMalloc", allocate)
    assert 0.01 < gpu_bandwidth(repeats=2) < 10_000
    assert sizes == [1 << 23, 1 << 23]
    assert fake.blocks == {}


def test_what_is_there_is_found_and_what_is_not_is_none() -> None:
    try:
        name = find_gpu().name
    except MissingPackage:
        assert measure_gpu() is None
        return
    found = measure_gpu()
    assert found is not None
    assert found.name == name
    assert found.gb_s > 1
