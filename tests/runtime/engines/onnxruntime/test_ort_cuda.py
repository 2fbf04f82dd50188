"""ONNX Runtime on CUDA: its bookkeeping with the CPU in the GPU's place, its errors as they are."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
from msgspec.structs import replace

from edgelm.bundle import GraphContract
from edgelm.devices.checks.packages.providers import CUDA_LIBRARY
from edgelm.errors import BadBundle, BadInput, ContextFull, DoesNotFit, MissingPackage
from edgelm.runtime.engines import growth
from edgelm.runtime.engines.cuda import Gpu
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.cuda import bound_step
from edgelm.runtime.engines.onnxruntime.cuda.gpu_pool import GpuPool
from edgelm.runtime.engines.onnxruntime.cuda.provider import check_onnxruntime, load_graph
from edgelm.runtime.engines.onnxruntime.ort_cuda import OrtCudaEngine
from edgelm.runtime.engines.session import Session
from edgelm.spec.decoder import DecoderSpec
from tests.conftest import TinyFactory
from tests.devices.checks.nvidia.test_fatbin import SASS, entry, fat_binary
from tests.export.graphs import CHUNK, CONTEXT, DialectName, build_session, cpu_engine, cpu_session
from tests.runtime.cpu_as_cuda import use_cpu_as_cuda, use_fake_driver
from tests.runtime.fake_gpu import FakeCuda

TOKENS = np.random.default_rng(0).integers(3, 128, 50)
LAPTOP = Gpu("RTX 4060", 89)


class Graph(NamedTuple):
    folder: Path
    contract: GraphContract
    spec: DecoderSpec

    def load(self, *, capacity: int = CONTEXT) -> OrtCudaEngine:
        return OrtCudaEngine(self.folder, self.contract, capacity=capacity, prefill_chunk=CHUNK)


DIALECTS = [("ort", False), ("standard", False), ("standard", True), ("decomposed", False)]


@pytest.fixture(scope="module", params=DIALECTS, ids=["ort", "standard", "batch", "decomposed"])
def graph(
    request: pytest.FixtureRequest, tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory
) -> Graph:
    dialect: DialectName
    dialect, batch = request.param
    folder = tmp_path_factory.mktemp(f"cuda-{dialect}")
    checkpoint = tiny("qwen3").checkpoint
    with build_session(checkpoint, folder, dialect=dialect, batch=batch) as session:
        return Graph(folder, cpu_engine(session)._graph, checkpoint.spec)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return use_fake_driver(monkeypatch)


@pytest.fixture
def engine(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> OrtCudaEngine:
    use_cpu_as_cuda(monkeypatch)
    return graph.load()


@pytest.fixture
def session(engine: OrtCudaEngine) -> Iterator[Session]:
    with EngineSession(engine) as session:
        yield session


@pytest.fixture
def reference(graph: Graph) -> Iterator[Session]:
    with cpu_session(graph.folder, graph.contract, capacity=CONTEXT, threads=1) as session:
        yield session


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("count", [1, 16, 17, 50])
@pytest.mark.parametrize("logits", [1, 3, 17, 50])
def test_prefill_is_that_of_the_cpu(
    session: Session, reference: Session, count: int, logits: int
) -> None:
    ours = session.advance(TOKENS[:count], logits=logits)
    assert_same(ours, reference.advance(TOKENS[:count], logits=logits))
    assert session.length == count


def test_prefill_decoding_and_rewinding(session: Session, reference: Session) -> None:
    for length, tokens in (
        (0, TOKENS[:30]),
        (30, TOKENS[30:31]),
        (31, TOKENS[31:32]),
        (11, TOKENS[::-1][:21]),
        (32, TOKENS[:1]),
        (5, TOKENS[5:6]),
        (6, TOKENS[6:40]),
        (0, TOKENS[9:10]),
    ):
        for one in (session, reference):
            one.rewind(length)
        assert_same(session.advance(tokens), reference.advance(tokens.copy()))
    assert session.length == 1


def test_it_is_a_session(session: Session, graph: Graph) -> None:
    as_protocol: Session = session
    assert (as_protocol.length, as_protocol.capacity) == (0, CONTEXT)
    assert as_protocol.vocab_size == 128
    spec = graph.spec
    per_token = 2 * 4 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim
    assert session.cache_bytes == CONTEXT * per_token
    with pytest.raises(ContextFull, match="0 tokens and 65 more do not fit in a context of 64"):
        session.advance(np.zeros(65, np.int64))


def test_decoding_is_one_cuda_graph(
    engine: OrtCudaEngine, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    inner = engine._loaded.session

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def run_with_iobinding(self, binding: Any, options: Any) -> None:
            runs.append((binding, options.get_run_config_entry("gpu_graph_id")))
            inner.run_with_iobinding(binding, options)

    monkeypatch.setattr(engine, "_loaded", engine._loaded._replace(session=Spy()))
    session.advance(TOKENS[:20])
    session.advance(TOKENS[20:21])
    session.advance(TOKENS[21:22])
    assert [graph_id for _, graph_id in runs] == ["-1", "-1", "1", "1"]
    assert runs[2][0] is runs[3][0]


def test_another_context_than_the_graph_s(graph: Graph, driver: FakeCuda) -> None:
    if graph.contract.cache.capacity is None:
        pytest.skip("this dialect's context is open")
    with pytest.raises(BadInput, match="is fixed at 64, but 32 was requested"):
        graph.load(capacity=32)


def test_the_package_for_the_cpu(graph: Graph, driver: FakeCuda) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this is the package for the GPU")
    message = r"has no CUDA provider, it is the package for the CPU; .* 'edgelm\[gpu\]'"
    with pytest.raises(MissingPackage, match=message):
        graph.load()


def test_no_driver(graph: Graph, driver: FakeCuda) -> None:
    driver.driver, driver.status["cudaGetDeviceCount"] = 0, 35
    with pytest.raises(MissingPackage, match="no CUDA driver was found"):
        graph.load()


@pytest.fixture
def gpu_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An onnxruntime-gpu: its provider's library is what a test writes there."""
    library = tmp_path / CUDA_LIBRARY
    library.parent.mkdir()
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    return library


def test_a_package_without_kernels_for_the_gpu(gpu_package: Path) -> None:
    gpu_package.write_bytes(fat_binary(entry(SASS, 80), entry(SASS, 90)))
    with pytest.raises(MissingPackage, match=r"for sm_80, sm_90, none for this GPU, .*\(sm_75\)"):
        check_onnxruntime(Gpu("T4", 75))


def test_a_package_with_kernels_for_the_gpu(gpu_package: Path) -> None:
    gpu_package.write_bytes(fat_binary(entry(SASS, 86)))
    check_onnxruntime(LAPTOP)


def test_a_provider_that_does_not_load(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime then only warns, and takes the CPU."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *given, **named: _OnCpu())
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudnn.so.9"))
    with pytest.raises(MissingPackage, match=r"did not load \(Failed to load libcudnn\.so\.9\)"):
        load_graph(graph.folder / graph.contract.file)


class _OnCpu:
    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_the_real_library_does_not_fall_back(graph: Graph) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this is the package for the GPU")
    with pytest.raises(BadBundle, match=r"cannot load .* with CUDA: .*fallback"):
        load_graph(graph.folder / graph.contract.file)


def test_too_little_memory_for_the_weights(
    graph: Graph, driver: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **named: Any) -> None:
        raise RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 9")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(DoesNotFit, match=r"model\.onnx needs .* of GPU memory, 1\.07 GB of 1"):
        load_graph(graph.folder / graph.contract.file)


def test_too_little_memory_for_the_cache(
    engine: OrtCudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("CUDA failure 2: out of memory")

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", fail)
    with pytest.raises(DoesNotFit, match=r"a cache needs 0\.1 MB of GPU memory"):
        engine._pool.reserve(1, CONTEXT, "a cache")


def test_a_bf16_cache_is_made(engine: OrtCudaEngine) -> None:
    pool = GpuPool(replace(engine._graph.cache, dtype="bf16"), 8, engine._stream)
    key, _ = pool.reserve(1, 8, "a cache")[0]
    assert key.owner.data_type() == "tensor(bfloat16)"
    assert key.shape[2:] == (8, engine._graph.cache.head_dim)


def test_a_cache_of_an_unknown_type(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpu_as_cuda(monkeypatch)
    cache = replace(graph.contract.cache, dtype="int4")
    with pytest.raises(BadBundle, match="of type int4, the CUDA provider has fp32, fp16, bf16"):
        GpuPool(cache, 8, graph.load()._stream)


def test_without_onnxruntime() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None; "
        "from edgelm.runtime.engines.onnxruntime import ort_cuda; "
        "print('imported'); ort_cuda.provider.onnxruntime.SessionOptions"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "imported\n"
    assert "MissingPackage: no engine installed: this bundle runs on ONNX" in done.stderr
    assert "pip install 'edgelm[gpu]'" in done.stderr


def test_a_growing_cache_computes_the_same(
    graph: Graph,
    engine: OrtCudaEngine,
    reference: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each size of the cache has a binding and a CUDA graph of its own."""
    monkeypatch.setattr(growth, "MIN_ROWS", 4)
    used: list[str] = []
    options = bound_step.run_options

    def note(graph_id: str) -> Any:
        used.append(graph_id)
        return options(graph_id)

    monkeypatch.setattr(bound_step, "run_options", note)
    with EngineSession(graph.load()) as session:
        assert session.capacity == CONTEXT
        for length, count in ((0, 3), (3, 1), (4, 1), (5, 1), (6, 20), (26, 1), (10, 50), (60, 1)):
            for one in (session, reference):
                one.rewind(length)
            tokens = TOKENS[:count]
            assert_same(session.advance(tokens), reference.advance(tokens))
        full = session.cache_bytes
    recorded = [graph_id for graph_id in used if graph_id != "-1"]
    assert recorded == ["1", "2", "3", "4"], "4, 8, 32 and 64 rows"
    if graph.contract.cache.capacity is None:
        assert full == 2 * 4 * CONTEXT * (
            graph.spec.num_hidden_layers * graph.spec.num_key_value_heads * graph.spec.head_dim
        )
