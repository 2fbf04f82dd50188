"""The CUDA runtime's calls and what their failures say."""

import importlib
from collections.abc import Iterator

import numpy as np
import pytest

from edgelm.errors import DoesNotFit, EdgeLMError, MissingPackage
from edgelm.runtime.engines import cuda
from edgelm.runtime.engines.cuda import Gpu, HostMemory, Memory, Stream, find_gpu, free_memory
from tests.runtime.fake_gpu import FakeCuda


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "_binding", lambda: fake)
    yield fake
    fake.queue.clear()


def test_the_gpu(driver: FakeCuda) -> None:
    assert find_gpu() == Gpu("Fake RTX 4060", 89)


def test_no_gpu(driver: FakeCuda) -> None:
    driver.status["cudaGetDeviceCount"] = 100
    with pytest.raises(MissingPackage, match="CUDA sees no GPU: nvidia-smi must list one"):
        find_gpu()


def test_no_driver(driver: FakeCuda) -> None:
    driver.driver, driver.status["cudaGetDeviceCount"] = 0, 35
    with pytest.raises(MissingPackage, match="no CUDA driver was found: install NVIDIA's driver"):
        find_gpu()


def test_no_driver_with_an_old_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldBinding:
        def cudaGetDeviceCount(self) -> None:  # noqa: N802
            raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(cuda, "_binding", OldBinding)
    with pytest.raises(
        MissingPackage, match=r"no CUDA driver was found: .*; cuda-bindings reports: Failed"
    ):
        find_gpu()


@pytest.mark.parametrize(
    ("installed", "text", "fitting"),
    [(12020, "12.2", "12.8.0"), (12060, "12.6", "12.8.0"), (12090, "12.9", "12.9.*"),
     (13000, "13.0", "13.0.*")],
)  # fmt: skip
def test_a_driver_that_is_too_old(
    driver: FakeCuda, installed: int, text: str, fitting: str
) -> None:
    driver.driver, driver.status["cudaGetDeviceCount"] = installed, 35
    with pytest.raises(MissingPackage) as caught:
        find_gpu()
    message = f"the driver is for CUDA {text}, cuda-bindings for CUDA 13.5; upgrade the driver, or"
    assert str(caught.value) == f"{message}: pip install 'cuda-bindings=={fitting}'"


def test_no_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", _absent)
    with pytest.raises(MissingPackage, match=r"needs the package cuda-bindings .*pip install"):
        cuda._binding.__wrapped__()


def _absent(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}")


def test_the_real_binding_without_a_gpu() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    try:
        gpu = find_gpu()
    except MissingPackage as error:
        assert "no CUDA driver was found" in str(error) or "CUDA sees no GPU" in str(error)  # noqa: PT017
    else:
        pytest.skip(f"there is a GPU, {gpu.name}")


def test_the_real_binding_has_every_call() -> None:
    """Whatever the fake has, under the same name; a fake with more than that would prove little."""
    real = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    ours = [name for name in vars(FakeCuda) if name.startswith(("do_", "cuda"))]
    calls = [name.removeprefix("do_") for name in ours]
    assert len(calls) > 20
    assert [name for name in calls if not hasattr(real, name)] == []
    for kind in ("cudaDeviceAttr", "cudaMemcpyKind", "cudaStreamCaptureMode"):
        values = vars(getattr(FakeCuda, kind))
        assert {name: int(getattr(getattr(real, kind), name)) for name in values} == values


def test_too_little_memory(driver: FakeCuda) -> None:
    driver.total = 10_000_000
    message = (
        r"the cache needs 20\.0 MB of GPU memory, 10\.0 MB of 10\.0 MB are free; close what else "
        "uses the GPU, or export with a smaller --context"
    )
    with pytest.raises(DoesNotFit, match=message):
        Memory(20_000_000, "the cache")


def test_a_failed_call_names_itself(driver: FakeCuda) -> None:
    driver.status["cudaStreamSynchronize"] = 700
    with pytest.raises(EdgeLMError, match="cudaStreamSynchronize failed with CUDA error 700: ille"):
        Stream().synchronize()


def test_memory_goes_with_its_last_user(driver: FakeCuda) -> None:
    memory, host = Memory(64, "test"), HostMemory(64)
    numbers = host.array(np.int64, offset=16, count=2)
    numbers[:] = 7, 8
    assert free_memory() == (driver.total - 128, driver.total)
    del host
    assert numbers.tolist() == [7, 8]
    memory.free()
    memory.free()
    assert len(driver.blocks) == 1
    del numbers
    assert not driver.blocks


def test_copies_run_in_order(driver: FakeCuda) -> None:
    stream, host, memory = Stream(), HostMemory(32), Memory(32, "test")
    numbers = host.array(np.int64, count=4)
    numbers[:] = 1, 2, 3, 4
    stream.zero(memory.address, 32)
    # The last two of four, apart from each other, to the places of the first and the third.
    spread = Memory(32, "test")
    stream.to_gpu(memory.address, host.address, 32)
    stream.zero(spread.address, 32)
    stream.copy_rows(spread.address, memory.address + 16, pitches=(16, 8), width=8, rows=2)
    stream.to_host(host.address, spread.address, 32)
    stream.synchronize()
    assert numbers.tolist() == [3, 0, 4, 0]


def test_recorded_work_runs_when_it_is_launched(driver: FakeCuda) -> None:
    stream, host, memory = Stream(), HostMemory(8), Memory(8, "test")
    number = host.array(np.int64)
    graph = stream.capture(lambda: stream.to_gpu(memory.address, host.address, 8))
    for value in (5, 6):
        number[0] = value
        stream.launch(graph)
        stream.to_host(host.address, memory.address, 8)
        stream.synchronize()
        assert number[0] == value
    graph.close()


def test_recording_that_fails_leaves_the_stream_usable(driver: FakeCuda) -> None:
    stream = Stream()

    def fail() -> None:
        raise EdgeLMError("not this")

    with pytest.raises(EdgeLMError, match="not this"):
        stream.capture(fail)
    assert driver.recording is None
    stream.synchronize()
